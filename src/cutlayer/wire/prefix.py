"""A digest of every prefix of the rows sent so far.

Both sides keep one; a step names the digest of the prefix it builds on, so that a server never continues from a cache
that differs from what the client believes it holds (after a lost connection, a restart, a bug). It is a check against
accidents between the two, not an authentication: the rows themselves are known to both.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from cutlayer.errors import ProtocolError
from cutlayer.wire.frames import DIGEST_BYTES

_EMPTY: Final = bytes(DIGEST_BYTES)


class PrefixDigests:
    """d₀ = 0, dᵢ₊₁ = BLAKE2b(rowᵢ, key = dᵢ), 8 bytes each."""

    def __init__(self) -> None:
        self._digests = [_EMPTY]

    def __len__(self) -> int:
        return len(self._digests) - 1

    def at(self, position: int) -> bytes:
        """Digest of the rows [0, position).

        Raises:
            ProtocolError: so many rows have not been seen.
        """
        if not 0 <= position <= len(self):
            raise ProtocolError(f"no digest at position {position}: {len(self)} rows are known")
        return self._digests[position]

    def extend(self, rows: bytes | memoryview, row_bytes: int) -> None:
        """Append rows, each `row_bytes` long."""
        view = memoryview(rows)
        digest = self._digests[-1]
        for start in range(0, len(view), row_bytes):
            digest = blake2b(view[start : start + row_bytes], digest_size=DIGEST_BYTES, key=digest).digest()
            self._digests.append(digest)

    def rollback(self, position: int) -> None:
        """Forget the rows from `position` on.

        Raises:
            ProtocolError: so many rows have not been seen.
        """
        if not 0 <= position <= len(self):
            raise ProtocolError(f"cannot roll back to position {position}: {len(self)} rows are known")
        del self._digests[position + 1 :]
