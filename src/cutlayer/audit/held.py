"""The hidden states a server holds now, position by position, while a session runs.

    held = Held(dialler(url, keys=keys))
    client = Client(held)
    ...
    held.rows()          # of every position, the row that was sent last

A step is a function of its prefix: it makes the server forget what it held from its base on. So do rollbacks and resends
here. What was replaced is gone from here, though not necessarily from a server that keeps copies.

Footgun: prompts can be recovered from these rows; treat them as the prompts themselves. They are never written anywhere.

Notation: T positions.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cutlayer.audit.tap import Tap
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.audit.tap import Direction
    from cutlayer.wire.transport import Connect


class Held(Tap):
    """A tap that keeps rows instead of messages, so that it can listen for as long as a session lasts.

    Args:
        connect: opens the real transport.
    """

    def __init__(self, connect: Connect) -> None:
        super().__init__(connect, limit_bytes=1)  # messages are counted and not kept
        self.on_change: Callable[[], None] = lambda: None
        """Called after rows changed, in the thread that sent them."""
        self._rows: list[bytes] = []
        self._steps = 0
        self._rows_lock = threading.Lock()

    def record(self, direction: Direction, connection: int, data: bytes) -> None:
        """See `Tap.record`."""
        super().record(direction, connection, data)
        if direction == "received":
            return
        frame = frames.decode(data)
        if not isinstance(frame.header, frames.Step):
            return
        width = len(frame.payload) // frame.header.count
        rows = [bytes(frame.payload[i : i + width]) for i in range(0, len(frame.payload), width)]
        with self._rows_lock:
            self._rows[frame.header.base :] = rows
            self._steps += 1
        self.on_change()

    @property
    def steps(self) -> int:
        """Steps sent so far."""
        with self._rows_lock:
            return self._steps

    def rows(self, after: int = 0) -> list[bytes]:
        """Encoded hidden states of the positions [0, T).

        Args:
            after: a number of steps; as long as no more than those were sent, there are no rows. The first step of a new
                prompt replaces all rows that belong to another, and until then they are not to be taken for its own.
        """
        with self._rows_lock:
            return self._rows.copy() if self._steps > after else []
