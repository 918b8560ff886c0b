"""A wide-area network on one machine: what lies between two processes, made slow."""
