"""What crosses the network: frames, codecs, the session protocol without sockets, transports and their security."""
