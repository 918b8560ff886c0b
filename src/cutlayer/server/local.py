"""A server inside this process, reached through memory instead of a socket.

with LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as server:
    transport = server.connect()
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from cutlayer.errors import ConnectionLostError
from cutlayer.wire.memory import MemoryTransport, memory_pair

if TYPE_CHECKING:
    from types import TracebackType

    from cutlayer.server.service import Service


class LocalServer:
    """Runs a service's event loop in a thread."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local-server", daemon=True)
        self._clients: list[MemoryTransport] = []

    def __enter__(self) -> LocalServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.break_connection()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._drain())
        self._loop.close()
        self.service.engine.close()

    def connect(self, identity: str = "memory") -> MemoryTransport:
        """A new connection.

        Args:
            identity: who the server takes the client for.

        Raises:
            ConnectionLostError: the server has stopped.
        """
        if self._loop.is_closed():
            raise ConnectionLostError("the local server has stopped")
        client, acceptor = memory_pair(self._loop)
        acceptor.identity = identity
        self._clients.append(client)
        asyncio.run_coroutine_threadsafe(self.service.serve(acceptor), self._loop)
        return client

    async def _drain(self) -> None:
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
