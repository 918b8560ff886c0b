"""Sessions that ask a server for one position after another, from hidden states computed beforehand.

Runs in a process of its own with one thread, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import torch
from websockets.asyncio.client import ClientConnection, connect

from cutlayer.models.locate import locate
from cutlayer.models.parts import load_client
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.types import Cut, DtypeName
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession, expect_info
from cutlayer.wire.codecs import CODECS, LOSSLESS_FOR
from cutlayer.wire.tls import client_context
from report import prompt_texts

_MAX_MESSAGE_BYTES: Final = 64 << 20
_PREFILL_ROWS: Final = 128


class Load(NamedTuple):
    """What a server is asked for."""

    url: str
    keys: Path
    dtype: DtypeName
    rows: bytes
    """Encoded hidden states of a text, repeated to any length."""
    row_bytes: int
    sessions: int
    context: int
    """Positions before decoding begins."""
    stretch: int
    """Decoded positions after which a session rolls back to its context."""
    seconds: float
    prefill: int = 0
    """Positions one more session sends over and over while the others decode."""


class Measured(NamedTuple):
    """What came of it."""

    latencies: list[list[float]]
    """Seconds per decode step, by session."""
    seconds: float
    prefilled: int
    """Positions of the one more session."""


def encoded_rows(model: str, cut: str, dtype: DtypeName, positions: int = 1024) -> tuple[bytes, int]:
    """Hidden states of text as they travel, and the bytes of one."""
    directory = locate(model)
    tokenizer = Tokenizer(directory)
    head = load_client(directory, Cut.parse(cut, 30), getattr(torch, dtype)).head
    ids = [token for text in prompt_texts(20) for token in tokenizer.encode(text)]
    ids = (ids * (positions // len(ids) + 1))[:positions]
    with torch.inference_mode():
        hidden = head(torch.tensor([ids]), head.new_cache())[0]  # [T, D]
    codec = CODECS.get(LOSSLESS_FOR[dtype])
    return codec.encode(hidden), codec.row_bytes(hidden.shape[1])


def apply_load(load: Load) -> Measured:
    """Run a load in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, load).result()


def _run(load: Load) -> Measured:
    torch.set_num_threads(1)
    return asyncio.run(_all(load))


async def _all(load: Load) -> Measured:
    opened = [await _Session.open(load) for _ in range(load.sessions)]
    for session in opened:
        await session.fill(load.context)
    more = await _Session.open(load) if load.prefill else None
    started = time.perf_counter()
    end = started + load.seconds
    latencies, prefilled = await asyncio.gather(
        asyncio.gather(*(session.decode(end) for session in opened)),
        more.prefill_until(end) if more is not None else asyncio.sleep(0, 0),
    )
    elapsed = time.perf_counter() - started
    for session in [*opened, *([more] if more is not None else [])]:
        await session.close()
    return Measured(list(latencies), elapsed, prefilled)


class _Session:
    """One client's session."""

    def __init__(self, load: Load, connection: ClientConnection, session: ClientSession) -> None:
        self._load = load
        self._connection = connection
        self._session = session

    @classmethod
    async def open(cls, load: Load) -> _Session:
        connection = await connect(
            load.url, ssl=client_context(load.keys), subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
            compression=None, max_size=_MAX_MESSAGE_BYTES, proxy=None, ping_interval=None,
        )  # fmt: skip
        await connection.send(frames.encode(frames.Info()))
        info = expect_info(await connection.recv(decode=False))
        session = ClientSession(load.row_bytes)
        await connection.send(session.open(info.fingerprint, info.cut, LOSSLESS_FOR[load.dtype]))
        session.receive(await connection.recv(decode=False))
        return cls(load, connection, session)

    async def fill(self, positions: int) -> None:
        """Bring the session to so many positions."""
        at = 0
        while at < positions:
            count = min(_PREFILL_ROWS, positions - at)
            await self._step(at, count)
            at += count

    async def decode(self, end: float) -> list[float]:
        """One position after another until `end`; seconds of each."""
        load, taken = self._load, []
        at = load.context
        while (begun := time.perf_counter()) < end:
            await self._step(at, 1)
            taken.append(time.perf_counter() - begun)
            at = at + 1 if at + 1 < load.context + load.stretch else load.context
        return taken

    async def prefill_until(self, end: float) -> int:
        """Fill the session from 0 again and again; positions sent."""
        sent = 0
        while time.perf_counter() < end:
            await self.fill(self._load.prefill)
            sent += self._load.prefill
        return sent

    async def close(self) -> None:
        await self._connection.send(self._session.close())
        self._session.receive(await self._connection.recv(decode=False))
        await self._connection.close()

    async def _step(self, base: int, count: int) -> None:
        size = self._load.row_bytes
        held = len(self._load.rows) // size
        first = base % (held - count)
        await self._connection.send(self._session.step(base, self._load.rows[first * size : (first + count) * size]))
        self._session.receive(await self._connection.recv(decode=False))
