"""The in-memory connection keeps the promises of the `Transport` and `Acceptor` protocols."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import ConnectionLostError
from cutlayer.wire.memory import MemoryAcceptor, MemoryTransport, memory_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 10


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def ends(loop: asyncio.AbstractEventLoop) -> tuple[MemoryTransport, MemoryAcceptor]:
    return memory_pair(loop)


def on(loop: asyncio.AbstractEventLoop, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(WAIT_S)


def test_messages_arrive_in_order_both_ways(loop, ends) -> None:
    client, server = ends
    for i in range(100):
        client.send(bytes([i]))
    assert [on(loop, server.recv()) for _ in range(100)] == [bytes([i]) for i in range(100)]
    for i in range(100):
        on(loop, server.send(bytes([i])))
    assert [client.recv(WAIT_S) for _ in range(100)] == [bytes([i]) for i in range(100)]


def test_waiting_ends_in_time(ends) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match=r"no answer within 0\.01 s"):
        ends[0].recv(0.01)
    assert time.monotonic() - started < WAIT_S


def test_what_was_sent_before_the_break_still_arrives_and_then_nobody_waits(loop, ends) -> None:
    client, server = ends
    on(loop, server.send(b"last"))
    client.send(b"words")
    client.break_connection()
    assert client.recv(WAIT_S) == b"last"
    assert on(loop, server.recv()) == b"words"
    for _ in range(3):
        with pytest.raises(ConnectionLostError, match="closed"):
            client.recv()
        with pytest.raises(ConnectionLostError, match="closed"):
            on(loop, server.recv())
    with pytest.raises(ConnectionLostError, match="closed"):
        client.send(b"more")


def test_the_server_hanging_up_ends_the_clients_waiting(loop, ends) -> None:
    client, server = ends
    on(loop, server.close())
    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            client.recv()
    with pytest.raises(ConnectionLostError):
        client.send(b"more")


def test_closing_from_another_thread_ends_the_waiting(ends) -> None:
    client, _ = ends
    threading.Timer(0.05, client.close).start()
    with pytest.raises(ConnectionLostError, match="closed"):
        client.recv(WAIT_S)
    client.close()


def test_a_loop_that_is_gone_is_a_lost_connection() -> None:
    loop = asyncio.new_event_loop()
    client, _ = memory_pair(loop)
    loop.close()
    with pytest.raises(ConnectionLostError):
        client.send(b"hello")
    client.close()


def test_nothing_is_encrypted_and_nothing_says_so(ends) -> None:
    assert ends[0].security().protocol == "none"
