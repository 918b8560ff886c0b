"""What is done to hidden states before they leave the trusted side. One file per mechanism, each opening with its card."""
