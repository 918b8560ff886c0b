"""Attacks on the key cut: what a host reads from an obfuscated checkpoint and from the permuted ids sent to it."""
