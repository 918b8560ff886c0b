"""What an attack's guess is worth: one file per family of metrics, and the two that combine them, `scores` and `summary`."""
