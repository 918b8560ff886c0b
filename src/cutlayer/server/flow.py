"""The part of flow control that the WebSocket library leaves open: answers to pings.

Messages are taken one at a time and each answer waits until the one before has left. Pings are answered by the library as they
arrive, so a peer that sends pings and reads nothing fills this process's memory (measured: 10 MB a second).
"""

from __future__ import annotations

from typing import Any, Final

from websockets.asyncio.server import ServerConnection

_UNREAD_BYTES: Final = 64 << 10
"""Thousands of pongs; a peer that reads leaves none."""


class PacedConnection(ServerConnection):
    """Ends when its peer leaves too many pongs unread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0

    def data_received(self, data: bytes) -> None:
        """Take what arrived; whatever this call adds to the write buffer is pongs."""
        before = self.transport.get_write_buffer_size()
        super().data_received(data)
        added = self.transport.get_write_buffer_size() - before
        self._unread = max(added, 0) + (self._unread if before else 0)
        if self._unread > _UNREAD_BYTES:
            self.transport.abort()
