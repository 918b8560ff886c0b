"""What an untrusted server can do with what it holds. One file per attack, each opening with its card."""
