"""How both ends of a WebSocket use TCP: congestion control, one write for a message, pings that keep the window open."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.server import ServerConnection, serve

from cutlayer.errors import ConnectionLostError, InputError
from cutlayer.wire.frames import SUBPROTOCOL
from cutlayer.wire.keep_warm import INTERVAL_S, KeepWarm
from cutlayer.wire.tcp import congestion_control, dial, set_congestion_control
from cutlayer.wire.websocket import WebSocketAcceptor, WebSocketTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_CONGESTION"), reason="Linux chooses congestion control by socket"
)

_MESSAGE = bytes(20_000)
# struct tcp_info of linux/tcp.h
_DATA_SEGMENTS = struct.Struct("152x2I")


class Seen:
    """What the server saw."""

    def __init__(self) -> None:
        self.pings = 0
        self.no_delay: list[int] = []


class CountsPings(ServerConnection):
    """A server's end that knows how many pings it answered."""

    seen: Seen

    def process_event(self, event: object) -> None:
        self.seen.pings += getattr(getattr(event, "opcode", None), "name", "") == "PING"
        super().process_event(event)  # type: ignore[arg-type]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def url(seen: Seen) -> Iterator[str]:
    """A server on loopback, with our acceptor, that returns every message."""
    loop = asyncio.new_event_loop()
    bound: list[int] = []
    ready, end = threading.Event(), asyncio.Event()

    async def accept(connection: ServerConnection) -> None:
        channel = connection.transport.get_extra_info("socket")
        seen.no_delay.append(channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        acceptor = WebSocketAcceptor(connection, "loopback")
        try:
            while True:
                await acceptor.send(await acceptor.recv())
        except ConnectionLostError:
            pass

    class Counting(CountsPings):
        pass

    Counting.seen = seen

    async def run() -> None:
        async with serve(
            accept,
            "127.0.0.1",
            0,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            create_connection=Counting,
        ) as server:
            bound.append(next(iter(server.sockets)).getsockname()[1])
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(20)
    yield f"ws://127.0.0.1:{bound[0]}"
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., WebSocketTransport]]:
    made: list[WebSocketTransport] = []

    def make(**options: object) -> WebSocketTransport:
        made.append(WebSocketTransport(url, None, None, 1 << 20, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def segments(transport: WebSocketTransport) -> tuple[int, int]:
    """TCP segments with data, received and sent. Loopback's hold 64 kB, so each is one write."""
    channel = transport._socket.socket
    received, sent = _DATA_SEGMENTS.unpack(channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _DATA_SEGMENTS.size))
    return received, sent


def test_message_is_one_write_on_either_side(connect: Callable[..., WebSocketTransport]) -> None:
    transport = connect()
    before = segments(transport)
    for _ in range(5):
        transport.send(_MESSAGE)
        assert transport.recv(10) == _MESSAGE
    after = segments(transport)
    assert (after[0] - before[0], after[1] - before[1]) == (5, 5)


def test_neither_side_waits_to_fill_a_segment(connect: Callable[..., WebSocketTransport], seen: Seen) -> None:
    transport = connect()
    assert transport._socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    transport.send(_MESSAGE)
    assert transport.recv(10) == _MESSAGE  # the other side has looked by now
    assert seen.no_delay
    assert all(seen.no_delay)


@pytest.mark.parametrize("name", ["reno", "cubic"])
def test_congestion_control_is_the_one_asked_for(connect: Callable[..., WebSocketTransport], name: str) -> None:
    transport = connect(congestion=name)
    assert transport.congestion_control() == name
    transport.send(_MESSAGE)
    assert transport.recv(10) == _MESSAGE


def test_accepted_sockets_inherit_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        set_congestion_control(listener, "reno")
        with dial("127.0.0.1", listener.getsockname()[1], 5), listener.accept()[0] as accepted:
            assert congestion_control(accepted) == "reno"


@pytest.mark.parametrize("name", ["no-such-control", "", "x" * 16, "bbr\0", "größe"])
def test_unknown_congestion_control_is_refused_with_those_there_are(
    connect: Callable[..., WebSocketTransport], name: str
) -> None:
    with pytest.raises(InputError, match="cubic"):
        connect(congestion=name)


class Refusing:
    """A socket whose kernel lets nobody choose."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        raise PermissionError(1, "Operation not permitted")

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        return b"reno".ljust(length, b"\0")


def test_only_an_explicit_choice_can_fail() -> None:
    set_congestion_control(Refusing())
    assert congestion_control(Refusing()) == "reno"
    with pytest.raises(InputError, match="Operation not permitted"):
        set_congestion_control(Refusing(), "cubic")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionLostError, match="cannot connect"):
        WebSocketTransport(f"ws://127.0.0.1:{port}", None, None, 1 << 20)


def test_silent_connection_is_kept_warm_for_as_long_as_asked(
    connect: Callable[..., WebSocketTransport], seen: Seen
) -> None:
    transport = connect(keep_warm_s=1.0)
    time.sleep(0.1)
    transport.send(_MESSAGE)
    transport.recv(10)
    time.sleep(2.2)
    assert 2 <= seen.pings <= 5, "at 0.2, 0.4, 0.6, 0.8 s, and none after the first second"
    count = seen.pings
    transport.send(_MESSAGE)
    transport.recv(10)
    time.sleep(0.7)
    assert seen.pings > count, "and anew after the next message"


def test_without_being_asked_nothing_is_sent(connect: Callable[..., WebSocketTransport], seen: Seen) -> None:
    connect()
    time.sleep(3 * INTERVAL_S)
    assert seen.pings == 0


def test_messages_make_pings_unnecessary() -> None:
    pings: list[float] = []
    warmth = KeepWarm(lambda: pings.append(time.monotonic()), seconds=10)
    deadline = time.monotonic() + 3 * INTERVAL_S
    while time.monotonic() < deadline:
        warmth.used()
        time.sleep(INTERVAL_S / 20)
    warmth.end()
    assert not pings


def test_lost_connection_ends_the_pings(connect: Callable[..., WebSocketTransport]) -> None:
    before = threading.active_count()
    transport = connect(keep_warm_s=30)
    transport.break_connection()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "keep-warm"]
