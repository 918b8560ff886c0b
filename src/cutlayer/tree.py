"""What a session holds: a chain of positions, and branches at its end.

Guesses about the next tokens branch: several may follow the same token. They are held one after the other, in slots; each
slot knows the slot it follows, and sees that one and all before it on its path. Its position is the length of that path. The
first slots form the trunk, where slot and position are the same. Without guesses there is nothing but the trunk.

    slot      0 1 2 3 4 5 6          trunk: slots 0–3
    follows   – 0 1 2 2 4 3          slot 4 is a second guess after slot 2, slot 6 goes on after slot 3
    position  0 1 2 3 3 4 4

On the wire a slot's parent is the distance back to it, one byte. Client, server and their caches share this bookkeeping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

FURTHEST: Final = 255
"""Most slots between a guess and what it follows."""
MOST_GUESSES: Final = 512
"""Slots after the trunk; each row looks along its own path, so more would let a peer make a row arbitrarily expensive."""


class Placement(NamedTuple):
    """Where the rows of a step go."""

    base: int
    """Slot of the first; everything held from there on is forgotten before."""
    path: Sequence[int] = ()
    """Of the slots from `base` − len(`path`) on, those that stay and move there before; see `Tree.keep`."""
    backs: Sequence[int] = ()
    """What each row follows; see `Tree.extend`."""

    @property
    def anchor(self) -> int:
        """Slots that stay where they are."""
        return self.base - len(self.path)


class Tree:
    """Slots held and what each follows."""

    def __init__(self) -> None:
        self.trunk = 0
        """Slots before the first that does not follow the one before it."""
        self._parents: list[int] = []
        """Of the slots after the trunk."""

    def __len__(self) -> int:
        return self.trunk + len(self._parents)

    def extend(self, count: int, backs: Sequence[int] = ()) -> None:
        """Append slots.

        Args:
            count: how many.
            backs: for each, the distance back to the slot it follows; empty: each follows the one before it.

        Raises:
            ProtocolError: not as many distances as slots, one that leads out of the tree, or too many guesses; nothing
                changes.
        """
        check_backs(count, backs, len(self), self.trunk)
        for i in range(count):
            slot, back = len(self), backs[i] if backs else 1
            if back == 1 and not self._parents:
                self.trunk += 1
            else:
                self._parents.append(slot - back)

    def rollback(self, slot: int) -> None:
        """Forget the slots from `slot` on.

        Raises:
            ProtocolError: so many are not held.
        """
        if not 0 <= slot <= len(self):
            raise ProtocolError(f"cannot roll back to position {slot}: {len(self)} are held")
        del self._parents[max(slot - self.trunk, 0) :]
        self.trunk = min(self.trunk, slot)

    def keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        """Of the slots from `anchor` on keep those of a path, which thereby become trunk, and forget the others.

        Args:
            anchor: slots that stay where they are.
            path: distances from `anchor` to the slots kept, in order.

        Raises:
            ProtocolError: they are no path that goes on from slot `anchor` − 1; nothing changes.
        """
        self.check_path(anchor, path)
        self.rollback(anchor)
        self.trunk += len(path)

    def trunk_after(self, anchor: int, path: Sequence[int]) -> int:
        """Length of the trunk once such a path is kept."""
        return anchor + len(path) if path else min(anchor, self.trunk)

    def check_path(self, anchor: int, path: Sequence[int]) -> None:
        """Check what `keep` would be given, changing nothing.

        Raises:
            ProtocolError: as `keep`.
        """
        if not 0 <= anchor <= len(self):
            raise ProtocolError(f"cannot roll back to position {anchor}: {len(self)} are held")
        if path and anchor > self.trunk:
            raise ProtocolError(f"cannot keep a path from position {anchor}: guesses branch from {self.trunk} on")
        before = anchor - 1
        for distance in path:
            slot = anchor + distance
            if slot >= len(self) or self.parent(slot) != before:
                raise ProtocolError(f"slot {slot} of the kept path does not follow slot {before}")
            before = slot

    def parent(self, slot: int) -> int:
        """The slot that `slot` follows; −1 for the first."""
        return slot - 1 if slot < self.trunk else self._parents[slot - self.trunk]

    def backs(self, start: int, stop: int) -> bytes:
        """Distances back of the slots [start, stop), empty if each follows the one before it."""
        if stop <= self.trunk:
            return b""
        found = bytes(slot - self.parent(slot) for slot in range(start, stop))
        return b"" if found.count(1) == len(found) else found

    def path(self, slot: int) -> tuple[int, list[int]]:
        """What `slot` sees: the slots [0, n) of the trunk, and others after it, `slot` itself included if it is no trunk."""
        branch: list[int] = []
        while slot >= self.trunk:
            branch.append(slot)
            slot = self.parent(slot)
        return slot + 1, branch[::-1]


def check_backs(count: int, backs: Sequence[int], base: int, trunk: int) -> None:
    """Check distances back for `count` slots that are appended to `base` others, the first `trunk` of which are a chain.

    Raises:
        ProtocolError: as `Tree.extend`.
    """
    if backs and len(backs) != count:
        raise ProtocolError(f"{len(backs)} parents for {count} positions")
    for i, back in enumerate(backs):
        if not 1 <= back <= min(FURTHEST, base + i + 1):
            raise ProtocolError(f"position {base + i} follows one {back} back; 1 to {FURTHEST}, within the session")
    chained = next((i for i, back in enumerate(backs) if back != 1), count) if base == trunk else 0
    if base - trunk + count - chained > MOST_GUESSES:
        raise ProtocolError(f"more than {MOST_GUESSES} guesses; keep a path before guessing on")
