"""A client's and a server's half of a session, and rows for them."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession, Output
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.prefix import PrefixDigests
from cutlayer.wire.server_session import ServerSession

HIDDEN = 2
ROW = 4
ID = bytes(range(16))


def rows(count: int, seed: int = 0) -> bytes:
    """fp16 rows, all different and finite."""
    return b"".join((seed * 100 + i).to_bytes(4, "little") for i in range(count))


def digest(data: bytes) -> bytes:
    digests = PrefixDigests()
    digests.extend(data, ROW)
    return digests.at(len(data) // ROW)


def decoded(frame: bytes) -> Any:
    return frames.decode(frame).header


def opened(max_positions: int = 100, max_step_positions: int = 10) -> ClientSession:
    """Open, at epoch 1."""
    session = ClientSession(ROW)
    session.open("f", Cut(0, 1, 1), "fp16")
    session.receive(frames.encode(frames.Opened(ID, 1, max_positions, max_step_positions)))
    return session


@pytest.fixture
def client() -> ClientSession:
    return opened()


@pytest.fixture
def server() -> ServerSession:
    return ServerSession("me", CODECS.get("fp16"), HIDDEN, 100, 10)


def answer(client: ClientSession, frame: bytes) -> Output | None:
    """A server that runs the step."""
    step = decoded(frame)
    payload = b"" if step.flags else bytes(step.count * ROW)
    return client.receive(frames.encode(frames.Result(step.sequence, step.base, step.count, 0), payload))


def run(
    server: ServerSession, base: int, data: bytes, sequence: int | None = None, prefix: bytes | None = None
) -> None:
    """Accept and commit a step."""
    at = server._digests.at(min(base, server.position)) if prefix is None else digest(prefix)
    header = frames.Step(server._sequence + 1 if sequence is None else sequence, base, len(data) // ROW, 0, at)
    server.accept(header, memoryview(data))
    server.commit(header, memoryview(data))
