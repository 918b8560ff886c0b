"""Spoiled frames against the decoder and against a session: refused by name, within a bound of memory, and changing nothing.

Over 100,000 of them; the share of each sort that decodes is printed with ``-s``.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import FrameError, ProtocolError, RefusedError, RemoteError
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.prefix import PrefixDigests
from cutlayer.wire.server_session import ServerSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PER_SORT = 12_000  # nine sorts: 108,000 frames
MEASURED = 1_500
ALLOCATED_PER_BYTE = 16
ALLOCATED_AT_LEAST = 64 << 10
"""Decoding may allocate this much, and more only in proportion to the bytes that really came."""
SLOWEST_S = 1.0
HIDDEN = 2
EXPECTED = (FrameError, RefusedError)


@pytest.fixture
def session() -> ServerSession:
    """At position 5, and ready for step 2."""
    session = ServerSession("me", CODECS.get("fp32"), HIDDEN, 64, 16)
    rows = bytes(5 * session.row_bytes)
    first = frames.Step(1, 0, 5, 0, bytes(8))
    session.accept(first, memoryview(rows))
    session.commit(first, memoryview(rows))
    return session


def state(session: ServerSession) -> tuple[object, ...]:
    return session.epoch, session.position, session._sequence, tuple(session._digests._digests)


def fit_to_show(error: Exception) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 1200


def test_only_typed_errors_and_a_session_as_it_was(
    spoiled: Callable[[int], Iterator[bytes]], session: ServerSession, request: pytest.FixtureRequest
) -> None:
    before = state(session)
    decoded = accepted = 0
    for data in spoiled(PER_SORT):
        try:
            frame = frames.decode(data)
            decoded += 1
            if isinstance(frame.header, frames.Step):
                session.accept(frame.header, frame.payload)
                accepted += 1
            elif isinstance(frame.header, frames.Resume):
                ServerSession("me", session.codec, HIDDEN, 64, 16).resumed(frame.header)
        except EXPECTED as error:
            fit_to_show(error)
        # `accept` checks; only `commit` changes, and nothing was committed
        assert session.position == 5
    assert state(session) == before
    print(f"{request.node.callspec.id}: {decoded} of {PER_SORT} decode, {accepted} are acceptable steps")


def test_memory_stays_in_proportion_to_what_came(spoiled: Callable[[int], Iterator[bytes]]) -> None:
    tracemalloc.start()
    try:
        for data in list(spoiled(MEASURED)):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            started = time.perf_counter()
            with contextlib.suppress(FrameError):
                frames.decode(data)
            elapsed = time.perf_counter() - started
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= ALLOCATED_AT_LEAST + ALLOCATED_PER_BYTE * len(data)
            assert elapsed < SLOWEST_S
    finally:
        tracemalloc.stop()


def test_a_server_that_sends_spoiled_frames_gets_typed_errors_from_the_client(
    spoiled_any_way: Callable[[int, int], Iterator[bytes]],
) -> None:
    client = ClientSession(8)
    client.open("f", Cut(0, 1, 1), "fp32")
    client.receive(frames.encode(frames.Opened(bytes(16), 1, 1000, 100)))
    client.step(0, bytes(16))
    answered = 0
    for data in spoiled_any_way(10_000, 1):
        try:
            output = client.receive(data)
        except (FrameError, ProtocolError, RemoteError) as error:
            fit_to_show(error)
            continue
        assert output is not None
        assert len(output.payload) == 16
        answered += 1
        client.step(2 * answered, bytes(16)) if client.sent < 998 else client.step(0, bytes(16))
    assert client.outstanding == 1


def test_steps_that_do_pass_fill_no_more_than_the_session(session: ServerSession) -> None:
    """Digests are kept per position, so they are bounded with it."""
    row = session.row_bytes
    for number in range(2, 60):
        base = min(session.position, 64 - 16)
        step = frames.Step(number, base, 16, 0, session._digests.at(base))
        session.accept(step, memoryview(bytes(16 * row)))
        session.commit(step, memoryview(bytes(16 * row)))
    assert session.position == 64
    assert len(session._digests._digests) == 64


def test_extending_digests_is_linear() -> None:
    digests = PrefixDigests()
    started = time.perf_counter()
    digests.extend(bytes(8 * 20_000), 8)
    assert time.perf_counter() - started < SLOWEST_S
    assert len(digests) == 20_000
