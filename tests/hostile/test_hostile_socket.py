"""A hostile network against a real `cutlayer serve` process on loopback: after each attack it is healthy and serves well."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect as ws_connect

from cutlayer.client.connect import dialler
from cutlayer.client.remote import RemoteBody
from cutlayer.errors import RemoteCode
from cutlayer.models.parts import load_body
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HIDDEN = 32
STEP_POSITIONS = 8
MAX_SESSIONS = 4
MAX_MESSAGE = 3 + frames.MAX_HEADER_BYTES + STEP_POSITIONS * HIDDEN * 4
START_S = 120
WAIT_S = 15
BUSY_S = 3
"""More than either side allows for the closing handshake."""
UPGRADE_S = 10
"""What the server allows for the opening handshake."""
GROWTH = 64 << 20
"""Bytes of memory the process may gain through all attacks together."""
CODEC = CODECS.get("fp32")


@dataclass
class Served:
    """A running server."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    expected: torch.Tensor
    """What its body makes of `hidden()`."""

    def health(self) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=WAIT_S) as response:
            assert response.status == 200
            return json.loads(response.read())

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def serves(self) -> None:
        """A good client gets what it should."""
        assert self.health()["status"] == "ok"
        remote = RemoteBody(dialler(self.url))
        info = remote.info()
        remote.open(info.fingerprint, info.cut, CODEC, HIDDEN)
        remote.send(0, hidden())
        output = remote.receive().hidden
        remote.close()
        assert torch.equal(output, self.expected)
        assert self.process.poll() is None


def hidden() -> torch.Tensor:
    return torch.randn(STEP_POSITIONS, HIDDEN, generator=torch.Generator().manual_seed(0))  # [T, D]


@pytest.fixture(scope="module")
def running(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tiny("llama")
    folder = tmp_path_factory.mktemp("served")
    ready = folder / "ready"
    command = [
        sys.executable, "-m", "cutlayer", "serve", str(directory), "--cut=2:-2", "--listen=127.0.0.1:0",
        f"--max-step-positions={STEP_POSITIONS}", "--max-positions=64", f"--max-sessions={MAX_SESSIONS}", f"--ready-file={ready}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            deadline = time.monotonic() + START_S
            while not (ready.exists() and ready.read_text().endswith("\n")):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            url = ready.read_text().strip()
            body = load_body(directory, Cut.parse("2:-2", 6), torch.float32)
            with torch.inference_mode():
                expected = body(hidden().unsqueeze(0), body.new_cache())[0]
            served = Served(url, int(url.rpartition(":")[2]), process, expected)
            # Settle the allocator before its growth is measured.
            served.expected = _first_answer(served)
            assert (served.expected - expected).abs().max() < 1e-4
            before = served.memory()
            yield served
            assert served.memory() - before < GROWTH
        finally:
            process.terminate()
            assert process.wait(WAIT_S) == 0
    assert b"Traceback" not in (folder / "log").read_bytes()
    assert b"internal_error" not in (folder / "log").read_bytes()


def _first_answer(served: Served) -> torch.Tensor:
    remote = RemoteBody(dialler(served.url))
    info = remote.info()
    remote.open(info.fingerprint, info.cut, CODEC, HIDDEN)
    remote.send(0, hidden())
    output = remote.receive().hidden
    remote.close()
    return output


@pytest.fixture
def server(running: Served) -> Iterator[Served]:
    yield running
    running.serves()


def websocket(server: Served, **options: object):
    usual = {"subprotocols": [frames.SUBPROTOCOL], "compression": None, "close_timeout": 1}
    return ws_connect(server.url, proxy=None, legacy=True, **{**usual, **options})


def ended(connection: socket.socket) -> bool:
    """Whether the server hung up (within the socket's patience)."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


GARBAGE = [
    b"\x00" * 2000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 508,  # a TLS hello
    b"\x80\x04\x95" + b"\xff" * 500,
    b"\n" * 5000,
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"A" * 100_000,
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /health HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    b"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: !\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n",
    b"GET /\x00\x1b[31m HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: data[:12].hex())
def test_garbage_instead_of_http(server: Served, data: bytes) -> None:
    with server.raw() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        assert ended(connection)


def test_random_bytes_on_many_connections(server: Served) -> None:
    chance = random.Random(7)
    for _ in range(150):
        with server.raw() as connection, contextlib.suppress(OSError):
            connection.sendall(chance.randbytes(chance.choice([1, 50, 5000])))


@pytest.mark.parametrize("offered", [None, ["chat"], ["cutlayer.0", "cutlayer.2"]])
def test_a_client_that_speaks_something_else_is_turned_away(server: Served, offered: list[str] | None) -> None:
    with pytest.raises(InvalidHandshake):
        websocket(server, subprotocols=offered)


def test_a_browser_page_cannot_reach_a_server_on_this_machine(server: Served) -> None:
    """Browsers name the page's origin and let any page open WebSockets to loopback; no client of ours has an origin."""
    with pytest.raises(InvalidHandshake):
        websocket(server, origin="https://evil.example")


def test_an_unknown_path_is_no_other_service(server: Served) -> None:
    for path in ("/health/../etc/passwd", "/metrics", "/%2e%2e/"):
        with server.raw() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert b" 200 " not in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("text", ["", "hello", "\x1b[31m", "\x00", "x" * 10_000])
def test_text_messages_are_frames_or_nothing(server: Served, text: str) -> None:
    with websocket(server) as connection:
        connection.send(text)
        answer = frames.decode(connection.recv(timeout=WAIT_S)).header
        assert (answer.code, answer.fatal) == (RemoteCode.BAD_FRAME, True)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=WAIT_S)


def test_a_message_beyond_the_limit_ends_the_connection_before_it_is_read(server: Served) -> None:
    with websocket(server) as connection:
        with contextlib.suppress(ConnectionClosed):
            connection.send(bytes(MAX_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(timeout=WAIT_S)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


def test_the_largest_message_allowed_is_answered(server: Served) -> None:
    with websocket(server) as connection:
        connection.send(bytes(MAX_MESSAGE))
        assert frames.decode(connection.recv(timeout=WAIT_S)).header.code is RemoteCode.BAD_FRAME


def test_an_announced_length_is_only_a_promise(server: Served) -> None:
    """A WebSocket frame header that announces 2⁶² bytes."""
    before = server.memory()
    with websocket(server) as connection:
        connection.socket.sendall(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"mask")
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=WAIT_S)
    assert server.memory() - before < 16 << 20


def test_a_message_in_endless_fragments_ends_at_the_limit(server: Served) -> None:
    before = server.memory()
    with websocket(server) as connection:

        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(4096)

        with pytest.raises(ConnectionClosed):
            connection.send(endless())
    assert server.memory() - before < 16 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x83\x80mask",  # reserved opcode
        b"\xf2\x80mask",  # reserved bits
        b"\x82\x05hello",  # not masked
        b"\x89\xfe\x01\x00mask" + bytes(256),  # a ping that is too long
        b"\x80\x80mask",  # a continuation of nothing
        b"\x88\x81mask\x00",  # half a close code
    ],
    ids=lambda data: data[:2].hex(),
)
def test_broken_websocket_frames_end_the_connection(server: Served, data: bytes) -> None:
    with websocket(server) as connection:
        connection.socket.sendall(data)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=WAIT_S)


def test_compression_is_not_agreed_to(server: Served) -> None:
    """Neither as a bomb nor as a side channel."""
    with websocket(server, compression="deflate") as connection:
        assert connection.protocol.extensions == []


def test_half_open_connections_cost_nothing_but_a_descriptor(server: Served) -> None:
    connections = [server.raw() for _ in range(100)]
    try:
        server.serves()
    finally:
        for connection in connections:
            connection.close()


def test_a_request_that_drips_is_cut_off(server: Served) -> None:
    """Slow loris: a byte of the upgrade now and then."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 4000
    started = time.monotonic()
    connections = [server.raw() for _ in range(20)]
    with contextlib.ExitStack() as stack:
        for connection in connections:
            stack.enter_context(connection)
            connection.settimeout(0.01)
        alive = list(connections)
        for i in range(len(request)):
            if i == 10:
                server.serves()
            for connection in list(alive):
                try:
                    connection.sendall(request[i : i + 1])
                    if not connection.recv(1):
                        alive.remove(connection)
                except TimeoutError:
                    pass
                except OSError:
                    alive.remove(connection)
            if not alive:
                break
        assert not alive
    assert time.monotonic() - started < UPGRADE_S + WAIT_S


def test_connections_are_bounded_and_so_is_what_they_hold(server: Served) -> None:
    """Beyond the bound a client is turned away with 503; when others leave, it gets in."""
    before = server.memory()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * MAX_SESSIONS):
            stack.enter_context(websocket(server))
        with pytest.raises(InvalidHandshake, match="503"):
            websocket(server)
        assert server.health()["status"] == "ok"
    _until(lambda: _gets_in(server))
    assert server.memory() - before < 32 << 20


def test_a_client_that_does_not_read_stops_being_read(server: Served) -> None:
    """Answers pile up in TCP, not in the server: it stops taking requests. (The library's reader stops at 16 messages.)"""
    before = server.memory()
    info = frames.encode(frames.Info())
    message = b"\x82" + bytes([0x80 | len(info)]) + bytes(4) + info  # a mask of zeros changes nothing
    with websocket(server, ping_interval=None) as connection:
        raw = connection.socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, (1).to_bytes(8, sys.byteorder) + bytes(8))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 256 << 20:
                raw.sendall(message * 4096)
                sent += len(message) * 4096
        assert server.memory() - before < 48 << 20
        assert sent < 64 << 20
        server.serves()


def test_a_flood_of_pings_by_a_client_that_reads_no_pongs_ends_the_connection(server: Served) -> None:
    before = server.memory()
    pings = (b"\x89\xfd" + bytes(4) + b"x" * 125) * 2000
    upgrade = (
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {frames.SUBPROTOCOL}\r\n\r\n"
    )
    with server.raw() as connection:
        connection.sendall(upgrade.encode())
        assert connection.recv(12) == b"HTTP/1.1 101"
        with pytest.raises(ConnectionError):
            connection.sendall(pings * 400)  # 100 MB
    assert server.memory() - before < 32 << 20


def test_pings_are_answered(server: Served) -> None:
    with websocket(server) as connection:
        for _ in range(2000):
            assert connection.ping().wait(WAIT_S)


def test_thousands_of_spoiled_frames_over_a_socket(
    server: Served, spoiled_any_way: Callable[[int, int], Iterator[bytes]]
) -> None:
    connection = websocket(server)
    answered = 0
    for data in spoiled_any_way(400, 8):
        if len(data) > MAX_MESSAGE:
            continue
        connection.send(data)
        header = frames.decode(connection.recv(timeout=WAIT_S)).header
        answered += 1
        if isinstance(header, frames.Failure) and header.fatal:
            connection.close()
            connection = websocket(server)
    connection.close()
    assert answered > 380


def _gets_in(server: Served) -> bool:
    try:
        websocket(server).close()
    except InvalidHandshake:
        return False
    return True


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_leaves_a_busy_server_leaves_no_session(server: Served) -> None:
    """Neither side hangs up before the server has read that the session is over, however long it takes over a step."""
    remote = RemoteBody(dialler(server.url))
    info = remote.info()
    remote.open(info.fingerprint, info.cut, CODEC, HIDDEN)
    server.process.send_signal(signal.SIGSTOP)
    wake = threading.Timer(BUSY_S, server.process.send_signal, [signal.SIGCONT])
    wake.start()
    remote.send(0, hidden())
    remote.close()
    wake.join()
    assert server.health()["sessions"] == 0
