"""Who waits for a session, and whose turn is next: keys take turns, and within a key first come is first served.

Plain data without tasks or locks; the pool drives it from one thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiters of several owners.

    Args:
        limit: waiters per owner.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def add(self, owner: str, waiter: T) -> bool:
        """Append; False if the owner has too many waiting already."""
        if len(self._lines.get(owner, ())) >= self.limit:
            return False
        self._lines.setdefault(owner, deque()).append(waiter)
        return True

    def remove(self, owner: str, waiter: T) -> None:
        """Forget a waiter, who may be gone already."""
        line = self._lines.get(owner)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[owner]

    def next(self) -> tuple[str, T] | None:
        """Take the next waiter and move its owner to the back; None if nobody waits."""
        if not self._lines:
            return None
        owner, line = next(iter(self._lines.items()))
        waiter = line.popleft()
        self._lines.move_to_end(owner)
        if not line:
            del self._lines[owner]
        return owner, waiter
