"""Secret draws as a function of a 32-byte seed and a label.

Every key of an export has a label of its own (``perm``, ``Z``, ``L3/q``), and every label a ChaCha20 key of its own by
HKDF-SHA256. So any tensor can be made again without making those before it, and no draw says anything about another.

Footgun: what is derived from the draws by linear algebra (QR, inverse, products) is identical only on the same machine with the
same libraries; other processors round differently, far below what a checkpoint stores, but a stored bit may still differ.

Notation: N number of values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from cutlayer.types import Secret

SEED_BYTES: Final = 32

_WORD: Final = 8
_BLOCK: Final = 64
_MANTISSA: Final = 1 << 53
_WORDS_AT_ONCE: Final = 4096


class Stream:
    """Random 64-bit words of one label, and what is drawn from them. Consecutive draws consume consecutive words.

    Args:
        seed: master secret of `SEED_BYTES` bytes.
        label: what the draws are for.
    """

    def __init__(self, seed: Secret, label: str) -> None:
        info = f"cutlayer obfuscation 1 {label}".encode()
        self._key = HKDF(SHA256(), length=32, salt=None, info=info).derive(seed.reveal())
        self._next = 0
        self._waiting: list[int] = []

    def words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """The next `count` words, [N]."""
        first, last = self._next * _WORD, (self._next + count) * _WORD
        block, skipped = divmod(first, _BLOCK)
        # The cipher counts blocks in the first four bytes of its nonce, which makes every position reachable.
        cipher = Cipher(algorithms.ChaCha20(self._key, block.to_bytes(4, "little") + bytes(12)), mode=None).encryptor()
        drawn = cipher.update(bytes(skipped + last - first))
        self._next += count
        return np.frombuffer(drawn, dtype="<u8", offset=skipped)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Values in (0, 1), float64: 53 random bits at the centre of their interval, never 0 or 1."""
        words = self.words(int(np.prod(shape))) & np.uint64(_MANTISSA - 1)
        return torch.from_numpy((words.astype(np.float64) + 0.5) / _MANTISSA).reshape(shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values, float64, by inversion."""
        drawn: torch.Tensor = torch.special.ndtri(self.uniform(*shape))
        return drawn

    def signs(self, count: int) -> torch.Tensor:
        """±1 with equal chance, float64, [N]."""
        return torch.where(self.uniform(count) < 0.5, -1.0, 1.0).double()

    def scales(self, count: int, largest: float) -> torch.Tensor:
        """Factors in [1/largest, largest], uniform in their logarithm, float64, [N]."""
        return largest ** (2 * self.uniform(count) - 1)

    def permutation(self, count: int) -> torch.Tensor:
        """A uniform permutation of 0…N−1, int64: Fisher–Yates, without the bias of a plain remainder."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return torch.tensor(order, dtype=torch.int64)

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), by rejection."""
        accepted = (1 << 64) - (1 << 64) % bound
        while True:
            if not self._waiting:
                self._waiting = self.words(_WORDS_AT_ONCE)[::-1].tolist()
            word = self._waiting.pop()
            if word < accepted:
                return word % bound

    def orthogonal(self, size: int) -> torch.Tensor:
        """A uniform (Haar) orthogonal matrix, float64, [size, size]: QR of a Gaussian with the signs of R made positive.

        Mezzadri 2007 (arXiv math-ph/0609050): without the signs the distribution is not uniform.
        """
        q, r = torch.linalg.qr(self.normal(size, size))
        uniform: torch.Tensor = q * torch.sign(torch.diagonal(r))
        return uniform
