"""A digest of every prefix of the rows sent so far.

Both sides keep one; a step names the digest of the prefix it builds on, so that a server never continues from a cache
that differs from what the client believes it holds (after a lost connection, a restart, a bug). It is a check against
accidents between the two, not an authentication: the rows themselves are known to both.

A row's digest is that of its whole path, so it stays the same when guesses beside the path are forgotten.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cutlayer.errors import ProtocolError
from cutlayer.tree import Tree
from cutlayer.wire.frames import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

_EMPTY: Final = bytes(DIGEST_BYTES)


class PrefixDigests:
    """d₀ = 0, d of a row = BLAKE2b(row, key = d of the row it follows), 8 bytes each."""

    def __init__(self) -> None:
        self.tree = Tree()
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self._digests)

    def at(self, position: int) -> bytes:
        """Digest of the rows [0, position): that of the last one, if they are a chain, and else of those of all guesses.

        Raises:
            ProtocolError: so many rows have not been seen.
        """
        if not 0 <= position <= len(self):
            raise ProtocolError(f"no digest at position {position}: {len(self)} rows are known")
        trunk = min(position, self.tree.trunk)
        last = self._digests[trunk - 1] if trunk else _EMPTY
        return last if trunk == position else _chained(b"".join(self._digests[trunk:position]), last)

    def after(self, anchor: int, path: Sequence[int]) -> bytes:
        """What `at` would return for the end of a path, once it is kept.

        Raises:
            ProtocolError: it is none, see `Tree.keep`.
        """
        self.tree.check_path(anchor, path)
        return self._digests[anchor + path[-1]] if path else self.at(anchor)

    def extend(self, rows: bytes | memoryview, row_bytes: int, backs: Sequence[int] = ()) -> None:
        """Append rows, each `row_bytes` long; `backs` as in `Tree.extend`.

        Raises:
            ProtocolError: as `Tree.extend`.
        """
        view, first = memoryview(rows), len(self)
        self.tree.extend(len(view) // row_bytes, backs)
        for slot in range(first, len(self.tree)):
            parent = self.tree.parent(slot)
            start = (slot - first) * row_bytes
            before = self._digests[parent] if parent >= 0 else _EMPTY
            self._digests.append(_chained(view[start : start + row_bytes], before))

    def rollback(self, position: int) -> None:
        """Forget the rows from `position` on.

        Raises:
            ProtocolError: so many rows have not been seen.
        """
        self.keep(position)

    def keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        """Of the rows from `anchor` on keep those of a path, see `Tree.keep`.

        Raises:
            ProtocolError: it is none; nothing changes.
        """
        self.tree.keep(anchor, path)
        self._digests[anchor:] = [self._digests[anchor + distance] for distance in path]


def _chained(content: bytes | memoryview, key: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES, key=key).digest()
