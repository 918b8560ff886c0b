"""One direction of a link: a finite queue, a rate, a delay, jitter and loss. No sockets and no clock."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutlayer.netsim.shape import Shape


class Direction:
    """Says of each packet when it arrives on the other side.

    The bottleneck is the queue's exit: a packet waits for those before it, takes its length over the rate to leave, and
    then travels half the round trip. A packet that finds the queue full is dropped (tail drop), as is one that loss hits,
    which has used the bottleneck all the same.

    Args:
        shape: of the link.
        salt: tells the two directions' chances apart when the shape has a seed.
    """

    def __init__(self, shape: Shape, salt: str) -> None:
        self._shape = shape
        self._chance = random.Random(None if shape.seed is None else f"{shape.seed} {salt}")  # noqa: S311 - no secret
        self._delay_s = shape.rtt_ms / 2e3
        self._jitter_s = shape.jitter_ms / 1e3
        self._bytes_per_s = shape.bytes_per_s
        self._queue_bytes = shape.queue_bytes
        self._free_at = 0.0
        """When the bottleneck has sent all it was given."""
        self._last_due = 0.0
        self.lost = 0
        """Packets that loss hit."""
        self.overflowed = 0
        """Packets that found the queue full."""

    def backlog_bytes(self, now: float) -> float:
        """Bytes that wait for the rate."""
        return max(self._free_at - now, 0.0) * self._bytes_per_s if self._shape.mbit_s else 0.0

    def carry(self, size: int, now: float) -> float | None:
        """Take a packet.

        Args:
            size: its bytes.
            now: the time, s; never less than in the call before.

        Returns:
            When it arrives, on the clock of `now`; None if it never does.
        """
        if self.backlog_bytes(now) + size > self._queue_bytes and self._shape.mbit_s:
            self.overflowed += 1
            return None
        arrival = self.pass_through(size, now)
        if self._shape.loss and self._chance.random() < self._shape.loss:
            self.lost += 1
            return None
        return arrival

    def pass_through(self, size: int, now: float) -> float:
        """As `carry`, for what cannot be dropped."""
        self._free_at = max(self._free_at, now) + size / self._bytes_per_s
        due = self._free_at + self._delay_s
        if self._jitter_s:
            due += self._chance.uniform(-self._jitter_s, self._jitter_s)
            if not self._shape.reorder:
                due = max(due, self._last_due)
        self._last_due = due
        return due
