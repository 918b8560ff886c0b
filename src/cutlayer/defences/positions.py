"""Which tokens a row of hidden states stands for, as a defence needs to know it."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Positions(NamedTuple):
    """The place of consecutive rows in a sequence of tokens."""

    ids: Sequence[int]
    """All tokens up to and including the last row's."""
    prefixes: Sequence[bytes]
    """For each row, a digest of all tokens up to and including it."""


class History:
    """Tokens of one sequence and the digests of its prefixes.

    Examples:
        >>> history = History()
        >>> len(history.extend(0, [5, 6, 7]).prefixes)
        3
        >>> history.extend(1, [8]).ids
        [5, 8]
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._prefixes: list[bytes] = []

    def extend(self, base: int, ids: Sequence[int]) -> Positions:
        """Forget what was held from position `base` on, append `ids` and say where they are.

        Args:
            base: position of the first of `ids`; at most the number of tokens held.
            ids: tokens from there on.
        """
        del self._ids[base:], self._prefixes[base:]
        for token in ids:
            before = self._prefixes[-1] if self._prefixes else b""
            self._prefixes.append(blake2b(before + token.to_bytes(8, "little")).digest())
            self._ids.append(token)
        return Positions(self._ids.copy(), self._prefixes[base:])
