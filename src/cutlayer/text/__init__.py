"""Text ↔ token ids. Trusted side only."""
