"""What the trusted side serves over HTTP: OpenAI's interface for other programs, and the live view's page for oneself."""
