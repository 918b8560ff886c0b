"""What a server got to see, and what can be read from it: the tap, and the checks of `cutlayer doctor`."""
