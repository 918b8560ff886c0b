"""A server that answers at once: the product's own listener, TLS and acceptor with no model behind them, for `tcp.py`.

A message's first four bytes say how many bytes to answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import cast

from cutlayer.errors import ConnectionLostError
from cutlayer.server.engine import Runner
from cutlayer.server.listen import listen
from cutlayer.server.service import Service
from cutlayer.server.sessions import Limits, SessionTable
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.tls import server_context
from cutlayer.wire.transport import Acceptor

HIDDEN_SIZE = 4096


class NoModel:
    """Stands where the engine would; it is asked only to close."""

    def close(self) -> None:
        """Nothing to close."""


class Echo(Service):
    """Answers bytes with bytes."""

    async def serve(self, acceptor: Acceptor) -> None:
        """See `Service.serve`."""
        try:
            while True:
                await acceptor.send(bytes(int.from_bytes((await acceptor.recv())[:4], "little")))
        except ConnectionLostError:
            await acceptor.close()


def main() -> None:
    """Run as a process: HOST PORT KEYS CONGESTION."""
    host, port, keys, congestion = sys.argv[1:]
    engine = cast("Runner", NoModel())
    info = frames.InfoReply(
        protocol=frames.PROTOCOL, version="", model="echo", fingerprint="", cut=Cut(1, 2, 3), dtype="float32", device="none",
        hidden_size=HIDDEN_SIZE, max_positions=1, codecs=[], time=time.time(), opened=[], opened_count=0,
    )  # fmt: skip
    service = Echo(engine, SessionTable(engine, HIDDEN_SIZE, Limits()), info)
    asyncio.run(listen(service, host, int(port), tls=server_context(Path(keys)), congestion=congestion))
