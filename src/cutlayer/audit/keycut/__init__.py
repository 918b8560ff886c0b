"""The audit of the key cut: what a host reads from an obfuscated checkpoint and from the ids sent to it."""
