"""The asynchronous form of the same two calls: `aconnect` and `AsyncClient.generate`.

The model's outer layers block a core anyway, so the synchronous client runs in a worker thread and the event loop only
waits for it. One client answers one prompt at a time; open several for more.

    async with cutlayer.aconnect("wss://gpu.example:8443", keys="keys/client") as client:
        async for piece in client.generate("What is the capital of France?"):
            print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cutlayer.client.connect import Client, Options, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cutlayer.client.generation import Generation, Piece, Result
    from cutlayer.text.tokenizer import Message


class AsyncClient:
    """A `Client` whose calls do not block the event loop.

    Args:
        client: the synchronous client; owned from now on.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._lock = asyncio.Lock()

    def generate(self, prompt: str | Sequence[Message] | Sequence[int], **options: Any) -> AsyncGeneration:
        """Answer a prompt; the arguments are those of `Client.generate`."""
        return AsyncGeneration(self, prompt, options)

    async def close(self) -> None:
        """Free the server's memory and disconnect."""
        await asyncio.to_thread(self.client.close)


class AsyncGeneration:
    """Iterate for pieces, or await `result`. Leaving the loop early, or cancelling the task, stops the generation."""

    def __init__(
        self, owner: AsyncClient, prompt: str | Sequence[Message] | Sequence[int], options: dict[str, Any]
    ) -> None:
        self._owner = owner
        self._prompt = prompt
        self._options = options
        self._generation: Generation | None = None

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with self._owner._lock:
            generation = await asyncio.to_thread(self._owner.client.generate, self._prompt, **self._options)
            self._generation = generation
            pieces = iter(generation)
            try:
                while True:
                    # Shielded: a step in flight is finished even when the task is cancelled, so the session stays usable.
                    step = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
                    try:
                        piece = await asyncio.shield(step)
                    except asyncio.CancelledError:
                        await asyncio.wait([step])
                        raise
                    if piece is None:
                        return
                    yield piece
            finally:
                generation.close()

    async def result(self) -> Result:
        """Finish and return the account."""
        if self._generation is None:
            async for _ in self:
                pass
        if self._generation is None:
            raise RuntimeError("generation did not start")
        return await asyncio.to_thread(self._generation.result)


@asynccontextmanager
async def aconnect(
    url: str, *, keys: str | Path | None = None, token: str | Path | None = None, options: Options | None = None
) -> AsyncIterator[AsyncClient]:
    """Connect to a server and load this side's layers; the arguments are those of `connect`."""
    client = AsyncClient(await asyncio.to_thread(connect, url, keys=keys, token=token, options=options))
    try:
        yield client
    finally:
        await client.close()
