"""What this machine shows to its own user over HTTP. Loopback only."""
