"""Which tokens a row of hidden states stands for, as a defence needs to know it."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from cutlayer.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Positions(NamedTuple):
    """The place of consecutive rows in a history."""

    prefixes: Sequence[bytes]
    """For each row, a digest of all tokens up to and including it."""
    tokens: Callable[[int], Sequence[int]]
    """Row → all tokens up to and including it, on its path."""


class History:
    """Tokens of a session, guesses included, and the digests of their prefixes.

    Examples:
        >>> history = History()
        >>> len(history.extend(0, [5, 6, 7]).prefixes)
        3
        >>> history.extend(1, [8]).tokens(0)
        [5, 8]
    """

    def __init__(self) -> None:
        self.tree = Tree()
        self.ids: list[int] = []
        self.prefixes: list[bytes] = []

    def extend(self, base: int, ids: Sequence[int], backs: Sequence[int] = ()) -> Positions:
        """Forget what was held from slot `base` on, append `ids` and say where they are.

        Args:
            base: slot of the first of `ids`; at most the number held.
            ids: tokens from there on.
            backs: what each follows, as in `Tree.extend`.
        """
        self.keep(base)
        self.tree.extend(len(ids), backs)
        for slot, token in enumerate(ids, start=base):
            parent = self.tree.parent(slot)
            before = self.prefixes[parent] if parent >= 0 else b""
            self.prefixes.append(blake2b(before + token.to_bytes(8, "little")).digest())
            self.ids.append(token)
        return Positions(self.prefixes[base:], lambda row: self._tokens(base + row))

    def keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        """Of the slots from `anchor` on keep those of a path, see `Tree.keep`, and forget the others."""
        self.tree.keep(anchor, path)
        self.ids[anchor:] = [self.ids[anchor + distance] for distance in path]
        self.prefixes[anchor:] = [self.prefixes[anchor + distance] for distance in path]

    def _tokens(self, slot: int) -> list[int]:
        trunk, branch = self.tree.path(slot)
        return [*self.ids[:trunk], *(self.ids[guess] for guess in branch)]
