"""The parts of flow control that the WebSocket library leaves open: answers to pings, and the length of the request.

Messages are taken one at a time and each answer waits until the one before has left. Pings are answered by the library as they
arrive, so a peer that sends pings and reads nothing fills this process's memory (measured: 10 MB a second). A request may have
128 lines of 8 KiB there, a megabyte for each connection of somebody unknown.
"""

from __future__ import annotations

from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

_UNREAD_BYTES: Final = 64 << 10
"""Thousands of pongs; a peer that reads leaves none."""
_REQUEST_BYTES: Final = 32 << 10
"""Several times a request with the longest token; proxies add little."""


class PacedConnection(ServerConnection):
    """Ends when its peer leaves too many pongs unread, or asks to be let in at too great a length."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0
        self._asked = 0

    def data_received(self, data: bytes) -> None:
        """Take what arrived; whatever this call adds to the write buffer is pongs."""
        if self.protocol.state is State.CONNECTING:
            self._asked += len(data)
            if self._asked > _REQUEST_BYTES:
                self.transport.abort()
                return
        before = self.transport.get_write_buffer_size()
        super().data_received(data)
        added = self.transport.get_write_buffer_size() - before
        self._unread = max(added, 0) + (self._unread if before else 0)
        if self._unread > _UNREAD_BYTES:
            self.transport.abort()
