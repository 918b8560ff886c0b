"""Floods, guesses and greed against a real `cutlayer serve` process, next to a good client that must not notice.

Two tenants have a token each. Whatever mallory does, alice's steps go on on the same connection and come out right.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as ws_connect

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import dialler
from cutlayer.client.remote import RemoteBody
from cutlayer.errors import ConnectionLostError, RemoteCode, RemoteError
from cutlayer.models.parts import load_body
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.prefix import PrefixDigests
from cutlayer.wire.token import create_token_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HIDDEN = 32
ROWS = 4
SESSIONS = 32
THEIR_SESSIONS = 4
THEIR_CACHE = 64
OPEN_S = 10
"""What the server allows for the opening handshake."""
WAIT_S = 30
CODEC = CODECS.get("fp32")
ROW = CODEC.row_bytes(HIDDEN)
TENANTS = ("alice", "mallory")
GROWTH = 32 << 20


class Served:
    """A server whose tenants are alice and mallory."""

    def __init__(self, directory: Path, folder: Path, *options: str) -> None:
        self.expected = answer_of(directory)
        self.tokens = {name: folder / name for name in TENANTS}
        for file in self.tokens.values():
            create_token_file(file)
        book = folder / "book"
        book.write_text("# tenants\n" + "".join(f"{name} {file.read_text()}" for name, file in self.tokens.items()))
        book.chmod(0o600)
        ready, self.log = folder / "ready", folder / "log"
        command = [
            sys.executable, "-m", "cutlayer", "serve", str(directory), "--cut=2:-2", "--listen=127.0.0.1:0",
            "--max-step-positions=64", "--max-positions=128", f"--token={book}", f"--ready-file={ready}", *options,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until(lambda: self.process.poll() is not None or (ready.exists() and ready.read_text().endswith("\n")), 120)
        assert self.process.poll() is None, self.log.read_text()
        self.url = ready.read_text().strip()
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT_S)
        self.process.kill()
        self.process.wait()
        log = self.log.read_text()
        assert "Traceback" not in log
        assert "internal_error" not in log

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=WAIT_S) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def upgrade(self, name: str) -> bytes:
        token = self.tokens[name].read_text().strip()
        return (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {frames.SUBPROTOCOL}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def remote(self, name: str) -> RemoteBody:
        return RemoteBody(dialler(self.url, token=self.tokens[name]))


class Good(threading.Thread):
    """A client that decodes and looks at what it gets.

    Args:
        server: where.
        pause_s: between two steps.
        steps: after so many it is done; None goes on until the block ends.
    """

    def __init__(self, server: Served, pause_s: float = 0.01, steps: int | None = None) -> None:
        super().__init__()
        self.done = 0
        self.slowest_s = 0.0
        self.error: BaseException | None = None
        self._server = server
        self._pause_s = pause_s
        self._steps = steps
        self._over = threading.Event()
        self.remote = server.remote("alice")
        begin(self.remote)

    def __enter__(self) -> Good:
        self.start()
        until(lambda: self.done >= 3 or self.error is not None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps is None:
            before = self.done
            until(lambda: self.done >= before + 3 or self.error is not None)
        self._over.set() if self._steps is None else None
        self.join(WAIT_S)
        assert self.error is None, self.error
        assert self.remote.traffic.resumes == 0
        self.remote.close()

    def run(self) -> None:
        try:
            while not self._over.is_set() and self.done != self._steps:
                began = time.monotonic()
                at = self.done % ROWS  # one row after another, then back to the start
                self.remote.send(at, hidden()[at : at + 1])
                output = self.remote.receive().hidden[0]
                assert (output - self._server.expected[at]).abs().max() < 1e-4
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.done += 1
                time.sleep(self._pause_s)
        except BaseException as error:
            self.error = error


class Raw:
    """A connection of mallory's that says whatever it is told to."""

    def __init__(self, server: Served, name: str = "mallory") -> None:
        token = server.tokens[name].read_text().strip()
        self.socket = ws_connect(
            server.url, subprotocols=[frames.SUBPROTOCOL], compression=None, close_timeout=1, proxy=None, legacy=True,
            additional_headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        self.info = self.say(frames.Info())

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, header: frames.Header, payload: bytes = b"") -> bytes:
        self.socket.send(frames.encode(header, payload))
        return bytes(self.socket.recv(timeout=WAIT_S, decode=False))

    def say(self, header: frames.Header, payload: bytes = b"") -> Any:
        return frames.decode(self.ask(header, payload)).header

    def open(self, positions: int = 0) -> Any:
        return self.say(frames.Open(frames.PROTOCOL, self.info.fingerprint, self.info.cut, "fp32", positions))

    def fill(self, positions: int, sequence: int = 1) -> Any:
        """Send so many rows at once, from position 0."""
        digest = PrefixDigests().at(0)
        return self.say(frames.Step(sequence, 0, positions, 0, digest), bytes(positions * ROW))


def answer_of(directory: Path) -> torch.Tensor:
    body = load_body(directory, Cut.parse("2:-2", 6), torch.float32)
    with torch.inference_mode():
        return body(hidden().unsqueeze(0), body.new_cache())[0]  # [T, D]


def hidden() -> torch.Tensor:
    return torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(0))  # [T, D]


def begin(remote: RemoteBody) -> None:
    info = remote.info()
    remote.open(info.fingerprint, info.cut, CODEC, HIDDEN)


def until(holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def start(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Served]:
    return lambda *options: Served(tiny("llama"), tmp_path_factory.mktemp("served"), *options)


@pytest.fixture(scope="module")
def server(start: Callable[..., Served]) -> Iterator[Served]:
    limits = f"--max-sessions={SESSIONS}", f"--max-sessions-per-client={THEIR_SESSIONS}"
    with start(*limits, f"--max-cache-per-client={THEIR_CACHE}") as served:
        with Good(served):
            pass
        yield served


@pytest.fixture(autouse=True)
def _nobody_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions that an attack left behind would be the next test's quota."""
    yield
    if "server" in request.fixturenames:
        served = request.getfixturevalue("server")
        until(lambda: served.health() == (200, served.health()[1]) and not served.health()[1]["sessions"])
        until(lambda: served.health()[1]["cache_bytes"] == 0)


# Floods


def test_a_flood_of_connections_gets_its_share_and_no_more(server: Served) -> None:
    """All requests at once, so that none is let in between another's check and its count."""
    with Good(server) as good, contextlib.ExitStack() as stack:
        flood = [stack.enter_context(server.raw()) for _ in range(300)]
        for connection in flood:
            connection.sendall(server.upgrade("mallory"))
        answers = [connection.recv(12) for connection in flood]
        assert answers.count(b"HTTP/1.1 101") == 2 * THEIR_SESSIONS
        assert answers.count(b"HTTP/1.1 503") == 300 - 2 * THEIR_SESSIONS
        with Raw(server, "alice") as newcomer:  # others still come in
            assert isinstance(newcomer.open(), frames.Opened)
            assert isinstance(newcomer.say(frames.Close()), frames.Closed)
        assert good.error is None
    until(lambda: came_in(server))  # and mallory too, once her flood is over


def came_in(server: Served) -> bool:
    try:
        with Raw(server):
            return True
    except InvalidStatus:
        return False


def test_connections_opened_and_dropped_at_full_speed(server: Served) -> None:
    before = server.memory()
    with Good(server), ThreadPoolExecutor(4) as pool:

        def storm(_: int) -> None:
            for _ in range(100):
                with server.raw() as connection:
                    connection.sendall(server.upgrade("mallory"))

        list(pool.map(storm, range(4)))
    assert server.memory() - before < GROWTH


def test_half_a_request_is_cut_off_however_slowly_it_drips(server: Served) -> None:
    with Good(server), contextlib.ExitStack() as stack:
        flood = [stack.enter_context(server.raw()) for _ in range(100)]
        began = time.monotonic()
        alive = list(flood)
        for connection in flood:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
            connection.settimeout(0.001)
        while alive and time.monotonic() - began < OPEN_S + WAIT_S:
            for connection in list(alive):
                try:
                    connection.sendall(b"y")
                    if not connection.recv(1):
                        alive.remove(connection)
                except TimeoutError:
                    pass
                except OSError:
                    alive.remove(connection)
            time.sleep(0.2)
        assert not alive
        assert OPEN_S - 2 < time.monotonic() - began < OPEN_S + 5


def test_half_a_tls_handshake_is_cut_off(tiny: Callable[[str], Path]) -> None:
    with ServerProcess(str(tiny("llama"))) as server:
        address = server.url.removeprefix("wss://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=OPEN_S + 5) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a hello
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


HEADERS = {
    "one long line": b"X: " + b"y" * (1 << 20) + b"\r\n",
    "many lines": b"X: y\r\n" * (1 << 17),
    "as much as the library allows": (b"X: " + b"y" * 8000 + b"\r\n") * 100,
    "no end": b"X: " + b"y" * 8000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_huge_headers_are_refused_and_not_kept(server: Served, header: bytes) -> None:
    before = server.memory()
    ended = 0
    with Good(server), contextlib.ExitStack() as stack:
        flood = [stack.enter_context(server.raw()) for _ in range(100)]
        for connection in flood:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + header)
        time.sleep(2)  # whatever was not refused has been read by now; the server gives it ten seconds
        grown = server.memory() - before  # while all of them are still there
        for connection in flood:
            with contextlib.suppress(OSError):
                connection.sendall(b"\r\n\r\n")
        for connection in flood:
            with contextlib.suppress(ConnectionResetError):
                answer = connection.recv(12)
                assert answer[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 401"}
            ended += 1
    assert ended == 100
    assert grown < GROWTH


# Identity


@pytest.mark.parametrize("authorisation", [None, "", "Bearer ", "Bearer x", "Bearer {}x", "Basic {}", "Bearer alice"])
def test_wrong_tokens_are_refused(server: Served, authorisation: str | None) -> None:
    token = server.tokens["alice"].read_text().strip()
    headers = {} if authorisation is None else {"Authorization": authorisation.format(token)}
    with Good(server):
        for _ in range(20):
            with pytest.raises(InvalidStatus, match="401"):
                ws_connect(
                    server.url, subprotocols=[frames.SUBPROTOCOL], additional_headers=headers, proxy=None, legacy=True
                )


def test_a_client_with_a_wrong_token_is_told_so(server: Served, tmp_path: Path) -> None:
    create_token_file(tmp_path / "stranger")
    with pytest.raises(RemoteError) as caught:
        RemoteBody(dialler(server.url, token=tmp_path / "stranger"))
    assert caught.value.code is RemoteCode.UNAUTHORISED


def test_somebody_elses_session_looks_the_same_as_none(server: Served) -> None:
    with Good(server) as good, Raw(server) as mallory:
        hers = good.remote._session.id
        assert hers is not None
        answers = set()
        for session in (hers, bytes(16), secrets.token_bytes(16), hers[:15] + bytes([hers[15] ^ 1])):
            for epoch, position in ((1, 0), (2, 0), (2, 3), (9, 4), (frames.MAX_POSITIONS, 0)):
                answers.add(mallory.ask(frames.Resume(session, epoch, position)))
        assert len(answers) == 1  # to the byte
        failure = frames.decode(answers.pop()).header
        assert isinstance(failure, frames.Failure)
        assert failure.code is RemoteCode.UNKNOWN_SESSION


def test_sessions_are_not_found_by_guessing_at_full_speed(server: Served) -> None:
    with Good(server), Raw(server) as mallory:
        for _ in range(500):
            answer = mallory.say(frames.Resume(secrets.token_bytes(16), 5, 0))
            assert answer.code is RemoteCode.UNKNOWN_SESSION


def test_nobody_steps_rolls_back_or_closes_somebody_elses_session(server: Served) -> None:
    with Good(server) as good, Raw(server) as mallory:
        hers = good.remote._session
        assert hers is not None
        assert hers.id is not None
        mallory.say(frames.Resume(hers.id, 5, 0))
        for sequence in (0, 1, good.done % frames.SEQUENCES, (good.done + 1) % frames.SEQUENCES):
            step = frames.Step(sequence, 0, 1, 0, PrefixDigests().at(0))
            assert mallory.say(step, bytes(ROW)).code is RemoteCode.BAD_STEP
        assert mallory.say(frames.Close()).code is RemoteCode.BAD_STEP
        # with a session of her own it is hers that she steps and closes
        assert isinstance(mallory.open(), frames.Opened)
        assert mallory.say(frames.Resume(hers.id, 6, 0)).code is RemoteCode.BAD_STEP
        assert isinstance(mallory.fill(1), frames.Result)
        assert isinstance(mallory.say(frames.Close()), frames.Closed)
        assert mallory.say(frames.Close()).code is RemoteCode.BAD_STEP


# Quotas


def test_reconnecting_gives_no_more_sessions(server: Served) -> None:
    with Good(server) as good:
        kept = []
        for _ in range(THEIR_SESSIONS):
            with Raw(server) as mallory:
                opened = mallory.open()
                assert isinstance(opened, frames.Opened)
                kept.append(opened.session)
        for _ in range(3):
            with Raw(server) as mallory:
                refused = mallory.open()
                assert refused.code is RemoteCode.LIMIT
                assert f"{THEIR_SESSIONS} sessions" in refused.message
        assert good.error is None
        with Raw(server, "alice") as second:
            assert isinstance(second.open(), frames.Opened)
            assert isinstance(second.say(frames.Close()), frames.Closed)
        for session in kept:
            with Raw(server) as mallory:
                assert isinstance(mallory.say(frames.Resume(session, 2, 0)), frames.Resumed)
                assert isinstance(mallory.say(frames.Close()), frames.Closed)
        with Raw(server) as mallory:
            assert isinstance(mallory.open(), frames.Opened)
            assert isinstance(mallory.say(frames.Close()), frames.Closed)


def test_more_sessions_give_no_more_cache(server: Served) -> None:
    with Good(server), contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Raw(server)) for _ in range(3)]
        for mallory in connections:
            assert isinstance(mallory.open(), frames.Opened)
        assert isinstance(connections[0].fill(32), frames.Result)
        assert isinstance(connections[1].fill(32), frames.Result)
        assert connections[2].fill(1).code is RemoteCode.LIMIT
        with Raw(server) as mallory:  # nor does asking for it beforehand
            assert mallory.open(32).code is RemoteCode.LIMIT
        assert connections[0].fill(33, 2).code is RemoteCode.LIMIT
        assert isinstance(connections[1].say(frames.Close()), frames.Closed)
        until(lambda: isinstance(connections[2].fill(1), frames.Result))
        for mallory in (connections[0], connections[2]):
            assert isinstance(mallory.say(frames.Close()), frames.Closed)


def test_neither_reconnecting_nor_more_sessions_give_a_higher_rate(start: Callable[..., Served]) -> None:
    rate, burst_s = 20, 10
    with start(f"--max-rate={rate}", "--max-sessions-per-client=4") as server, Good(server, pause_s=0.1) as good:
        began = time.monotonic()

        def greedy(_: int) -> int:
            sent = 0
            while time.monotonic() - began < 6:
                try:
                    with Raw(server) as mallory:
                        mallory.open()
                        for sequence in range(1, 4):
                            mallory.socket.send(
                                frames.encode(frames.Step(sequence, 0, 8, 0, PrefixDigests().at(0)), bytes(8 * ROW))
                            )
                            mallory.socket.recv(timeout=max(0.0, began + 6 - time.monotonic()), decode=False)
                            sent += 8
                        mallory.say(frames.Close())
                except (TimeoutError, InvalidStatus):
                    return sent
            return sent

        with ThreadPoolExecutor(3) as pool:
            sent = sum(pool.map(greedy, range(3)))
        elapsed = time.monotonic() - began
        assert burst_s * rate * 0.9 < sent < burst_s * rate + rate * elapsed + 3 * 8
        assert good.slowest_s < 2  # who keeps to the rate does not wait for those who do not


# The end


def test_an_answer_in_progress_is_finished_before_the_server_stops(start: Callable[..., Served]) -> None:
    with start("--drain=60") as server, Raw(server, "mallory") as late:
        with Good(server, pause_s=0.1, steps=60):
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.health()[0] == 503)
            assert server.health()[1]["status"] == "draining"
            assert late.open().code is RemoteCode.SHUTTING_DOWN
            with Raw(server, "mallory") as later:
                assert later.open().code is RemoteCode.SHUTTING_DOWN
            assert server.process.poll() is None
        assert server.process.wait(WAIT_S) == 0
        with pytest.raises(ConnectionLostError):
            server.remote("alice")


def test_answers_that_never_end_are_given_up_after_the_time_allowed(start: Callable[..., Served]) -> None:
    with start("--drain=3") as server:
        good = Good(server, pause_s=0.05)
        good.start()
        until(lambda: good.done > 3)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_S) == 0
        assert 2.5 < time.monotonic() - began < 10
        good.remote.abort()
        good.join(WAIT_S)


def test_a_second_signal_ends_at_once(start: Callable[..., Served]) -> None:
    """Also with a peer that drips its request, and one whose step would have to wait an hour for its rate."""
    with start("--drain=600", "--max-rate=0.1") as server, server.raw() as dripping, Raw(server) as owing:
        dripping.sendall(b"GET / HT")
        owing.open()
        owing.socket.send(frames.encode(frames.Step(1, 0, 64, 0, PrefixDigests().at(0)), bytes(64 * ROW)))
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.health()[0] == 503)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(6) == 0
        with pytest.raises(ConnectionClosed):
            owing.socket.recv(timeout=1)
