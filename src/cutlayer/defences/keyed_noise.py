"""Noise that only the trusted side can predict: a cryptographic stream keyed by (session secret, token prefix).

A resend, a replay after a lost connection or the same tokens again release the very same noise, so a server learns
nothing by making the client send again: fresh noise would average away. Keying by position alone would not do. Two
different tokens at one position, as after a rollback or in the next prompt of a session, would share their noise, and
the server could subtract one release from the other.

Notation: T positions, D values per position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.types import Secret

_MANTISSA: Final = 1 << 53
_ZERO_NONCE: Final = bytes(16)


class KeyedNoise:
    """Random values as a function of the tokens up to a position.

    Args:
        session: secret of at least 32 bytes.
        purpose: separates streams of different mechanisms under one secret.
    """

    def __init__(self, session: Secret, purpose: str) -> None:
        self._key = HKDF(SHA256(), length=32, salt=None, info=f"cutlayer {purpose}".encode()).derive(session.reveal())

    def uniform(self, prefixes: Sequence[bytes], width: int) -> torch.Tensor:
        """Uniform values in (0, 1), [T, width], float64, one row per prefix digest."""
        stream = bytearray(b"".join(self._row(prefix, width) for prefix in prefixes))
        words = torch.frombuffer(stream, dtype=torch.int64).view(len(prefixes), width)  # [T, D]
        # 53 random bits at the centre of their interval: never 0 or 1, where the inverse normal is infinite
        return ((words & (_MANTISSA - 1)).double() + 0.5) / _MANTISSA

    def normal(self, prefixes: Sequence[bytes], width: int) -> torch.Tensor:
        """Standard normal values, [T, width], float64, by inversion."""
        normal: torch.Tensor = torch.special.ndtri(self.uniform(prefixes, width))
        return normal

    def _row(self, prefix: bytes, width: int) -> bytes:
        # Every prefix has a key of its own, so the nonce may stay zero; encrypting zeros yields the key stream.
        derivation = HMAC(self._key, SHA256())
        derivation.update(prefix)
        stream = Cipher(algorithms.ChaCha20(derivation.finalize(), _ZERO_NONCE), mode=None).encryptor()
        return stream.update(bytes(8 * width))
