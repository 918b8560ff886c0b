"""A connection inside one process: no socket, no thread of its own, the same bytes.

For tests and for trying a cut without a network. `break_connection` is what a cut cable looks like.

    client_end, server_end = memory_pair(loop)
"""

from __future__ import annotations

import asyncio
import queue
from typing import Final

from cutlayer.errors import ConnectionLostError
from cutlayer.wire.transport import UNPROTECTED, PeerSecurity

_CLOSED: Final = None


class MemoryTransport:
    """The client's end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.acceptor = MemoryAcceptor(self)
        self._open = True

    def send(self, data: bytes) -> None:
        """See `Transport.send`."""
        if not self._open or self._loop.is_closed():
            raise ConnectionLostError("in-memory connection is closed")
        self._loop.call_soon_threadsafe(self.acceptor.inbox.put_nowait, data)

    def recv(self, timeout_s: float | None = None) -> bytes:
        """See `Transport.recv`."""
        try:
            data = self.inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise ConnectionLostError(f"no answer within {timeout_s} s") from None
        if data is _CLOSED:
            self._open = False
            self.inbox.put(_CLOSED)  # the next `recv` must not wait either
            raise ConnectionLostError("in-memory connection is closed")
        return data

    def close(self) -> None:
        """See `Transport.close`."""
        self.break_connection()

    def break_connection(self) -> None:
        """Both ends find the connection lost."""
        if self._open:
            self._open = False
            self.inbox.put(_CLOSED)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.acceptor.inbox.put_nowait, _CLOSED)

    def security(self) -> PeerSecurity:
        """Nothing leaves the process, so nothing is encrypted."""
        return UNPROTECTED


class MemoryAcceptor:
    """The server's end."""

    def __init__(self, client: MemoryTransport) -> None:
        self.identity = "memory"
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._client = client

    async def send(self, data: bytes) -> None:
        """See `Acceptor.send`."""
        self._client.inbox.put(data)

    async def recv(self) -> bytes:
        """See `Acceptor.recv`."""
        data = await self.inbox.get()
        if data is _CLOSED:
            self.inbox.put_nowait(_CLOSED)
            raise ConnectionLostError("in-memory connection is closed")
        return data

    async def close(self) -> None:
        """See `Acceptor.close`."""
        self._client.inbox.put(_CLOSED)


def memory_pair(loop: asyncio.AbstractEventLoop) -> tuple[MemoryTransport, MemoryAcceptor]:
    """Two connected ends; the server's lives in `loop`."""
    client = MemoryTransport(loop)
    return client, client.acceptor
