"""Guessing the next tokens on this side, so that one round trip verifies several of them."""
