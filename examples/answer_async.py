"""Two clients of one server at the same time, without blocking the event loop.

python examples/answer_async.py wss://127.0.0.1:8410 keys/client
"""

import asyncio
import sys

import cutlayer

url, keys = sys.argv[1:3]


async def ask(question: str) -> str:
    """One client, one session, one answer."""
    async with cutlayer.aconnect(url, keys=keys) as client:
        pieces = [piece.text async for piece in client.generate(question, max_tokens=40)]
        return "".join(pieces)


async def main() -> None:
    """Both questions at once."""
    for answer in await asyncio.gather(ask("What is the capital of France?"), ask("Name a prime number above 20.")):
        print(answer)


asyncio.run(main())
