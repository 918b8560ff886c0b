"""Noise that only the trusted side can predict: a cryptographic stream keyed by (session secret, position).

A resend, a replay after a lost connection or a rollback to the same position releases the very same noise, so a server
learns nothing by making the client send again. Fresh noise would average away.

Notation: T positions, D values per position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from cutlayer.types import Secret

_MANTISSA: Final = 1 << 53


class KeyedNoise:
    """Random values as a function of position.

    Args:
        session: secret of at least 32 bytes.
        purpose: separates streams of different mechanisms under one secret.
    """

    def __init__(self, session: Secret, purpose: str) -> None:
        self._key = HKDF(SHA256(), length=32, salt=None, info=f"cutlayer {purpose}".encode()).derive(session.reveal())

    def uniform(self, base: int, count: int, width: int) -> torch.Tensor:
        """Uniform values in (0, 1), [count, width], float64, for positions [base, base + count)."""
        rows = [self._row(position, width) for position in range(base, base + count)]
        words = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.int64).view(count, width)  # [T, D]
        # 53 random bits at the centre of their interval: never 0 or 1, where the inverse normal is infinite
        return ((words & (_MANTISSA - 1)).double() + 0.5) / _MANTISSA

    def normal(self, base: int, count: int, width: int) -> torch.Tensor:
        """Standard normal values, [count, width], float64, by inversion."""
        normal: torch.Tensor = torch.special.ndtri(self.uniform(base, count, width))
        return normal

    def _row(self, position: int, width: int) -> bytes:
        # encrypting zeros yields the key stream; the 128-bit nonce field is counter ‖ position
        nonce = bytes(8) + position.to_bytes(8, "little")
        return Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor().update(bytes(8 * width))
