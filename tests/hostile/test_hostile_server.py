"""A hostile server against our client: typed errors, clean text on the terminal, no file of its choosing, no endless waiting."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve as ws_serve

from cutlayer.cli.app import main
from cutlayer.client.connect import Client, Options, dialler
from cutlayer.client.remote import Patience, RemoteBody
from cutlayer.errors import (
    ConnectionLostError,
    CutError,
    CutlayerError,
    FrameError,
    ModelNotFoundError,
    NonFiniteError,
    ProtocolError,
    RemoteCode,
    RemoteError,
)
from cutlayer.models.locate import fingerprint
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.frames import Kind
from cutlayer.wire.transport import UNPROTECTED, PeerSecurity
from cutlayer.wire.websocket import WebSocketTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HIDDEN = 32
CODEC = CODECS.get("fp32")
ROW = CODEC.row_bytes(HIDDEN)
PATIENCE = Patience(step_s=1.0, recover_s=0.5)
CUT = Cut(2, 4, 6)
INFO = frames.InfoReply(1, "0.1", "tiny", "f" * 32, CUT, "float32", "cpu", HIDDEN, 256, ["fp32"], 1.7e9, [], 0)
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"

Answer = "bytes | list[bytes] | None"


def packed(kind: Kind, fields: object, payload: bytes = b"") -> bytes:
    """A frame nobody checked before it was sent."""
    body = msgspec.msgpack.encode(fields)
    return bytes([kind]) + len(body).to_bytes(2, "little") + body + payload


class FakeServer:
    """Answers as a server should, except to the kinds it was told to answer otherwise. Usable as a `Connect`.

    Args:
        otherwise: kind of the client's frame → what to send for it, in place of the right answer.
    """

    def __init__(self, otherwise: dict[Kind, Callable[[Any, bytes], Answer]] | None = None) -> None:
        self.otherwise = otherwise or {}
        self.connections = 0
        self.received = 0

    def __call__(self) -> FakeTransport:
        self.connections += 1
        return FakeTransport(self)

    def answer(self, data: bytes) -> list[bytes]:
        frame = frames.decode(data)
        self.received += len(data)
        kind = Kind(data[0])
        if kind in self.otherwise:
            answer = self.otherwise[kind](frame.header, bytes(frame.payload))
            return answer if isinstance(answer, list) else [] if answer is None else [answer]
        header = frame.header
        match header:
            case frames.Info():
                return [frames.encode(INFO)]
            case frames.Open():
                return [frames.encode(frames.Opened(bytes(16), 1, 256, 64))]
            case frames.Resume():
                return [frames.encode(frames.Resumed(header.epoch, 0, bytes(8)))]
            case frames.Step():
                payload = b"" if header.flags else bytes(frame.payload)
                return [frames.encode(frames.Result(header.sequence, header.base, header.count, 5), payload)]
            case _:
                return [frames.encode(frames.Closed())]


class FakeTransport:
    """A connection to a `FakeServer`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._inbox: list[bytes] = []

    def send(self, data: bytes) -> None:
        self._inbox += self._server.answer(data)

    def recv(self, timeout_s: float | None = None) -> bytes:
        if not self._inbox:
            raise ConnectionLostError(f"no answer within {timeout_s} s")
        return self._inbox.pop(0)

    def close(self) -> None:
        self._inbox.clear()

    def security(self) -> PeerSecurity:
        return UNPROTECTED


def opened(server: FakeServer) -> RemoteBody:
    remote = RemoteBody(server, PATIENCE)
    remote.open(INFO.fingerprint, CUT, CODEC, HIDDEN)
    return remote


def hidden(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))  # [T, D]


def stepped(server: FakeServer) -> torch.Tensor:
    """Open, send two rows, receive."""
    remote = opened(server)
    remote.send(0, hidden(2))
    return remote.receive().hidden


def test_the_fake_server_serves_when_left_alone() -> None:
    assert torch.equal(stepped(FakeServer()), hidden(2))


# Results


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 2, 0), rows[:-1]), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 2, 0), rows + b"\0"), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 2, 0), rows[:ROW]), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 2, 0), rows * 2), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 2, 0), b""), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 0, 1, 0), rows[:ROW]), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence, 1, 2, 0), rows), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(step.sequence + 1, 0, 2, 0), rows), ProtocolError),
        (lambda step, rows: frames.encode(frames.Result(0, 0, 2, 0), rows), ProtocolError),
        (lambda step, rows: frames.encode(frames.Opened(bytes(16), 9, 1 << 24, 4096)), ProtocolError),
        (lambda step, rows: frames.encode(frames.Resumed(2, 0, bytes(8))), ProtocolError),
        (lambda step, rows: frames.encode(frames.Closed()), ProtocolError),
        (lambda step, rows: frames.encode(frames.Step(1, 0, 1, 0, bytes(8)), rows), ProtocolError),
        (lambda step, rows: frames.encode(INFO), ProtocolError),
        (lambda step, rows: b"", FrameError),
        (lambda step, rows: b"\x06\xff\xff", FrameError),
        (lambda step, rows: packed(Kind.RESULT, [1, 0, 2]), FrameError),
        (lambda step, rows: packed(Kind.RESULT, [1, 0, 2, -1], rows), FrameError),
        (lambda step, rows: packed(Kind.ERROR, ["limit", "x" * 60_000, False]), FrameError),
        (lambda step, rows: packed(Kind.ERROR, ["made_up", "", False]), FrameError),
        (lambda step, rows: packed(Kind.ERROR, ["limit", "full", False]), RemoteError),
        (lambda step, rows: packed(Kind.ERROR, ["unauthorised", "no", True]), RemoteError),
        (lambda step, rows: None, ConnectionLostError),
    ],
)
def test_answers_that_are_no_answer_raise_typed_errors(
    answer: Callable[..., Answer], error: type[CutlayerError]
) -> None:
    with pytest.raises(error) as caught:
        stepped(FakeServer({Kind.STEP: answer}))
    assert type(caught.value) is error
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_refused(bad: float) -> None:
    def answer(step: frames.Step, rows: bytes) -> bytes:
        values = CODEC.decode(rows, HIDDEN)
        values[1, 7] = bad
        return frames.encode(frames.Result(step.sequence, 0, 2, 0), values.numpy().tobytes())

    with pytest.raises(NonFiniteError):
        stepped(FakeServer({Kind.STEP: answer}))


def test_results_nobody_asked_for_raise_when_a_result_is_due() -> None:
    def twice(step: frames.Step, rows: bytes) -> list[bytes]:
        return [frames.encode(frames.Result(step.sequence, step.base, step.count, 0), rows)] * 2

    remote = opened(FakeServer({Kind.STEP: twice}))
    remote.send(0, hidden(1))
    remote.receive()
    remote.send(1, hidden(1))
    with pytest.raises(ProtocolError, match=r"step 1 .* where step 2"):
        remote.receive()


def test_a_client_goes_on_with_a_better_server_after_a_bad_answer() -> None:
    server = FakeServer({Kind.STEP: lambda step, rows: frames.encode(frames.Closed())})
    remote = opened(server)
    remote.send(0, hidden(1))
    with pytest.raises(ProtocolError):
        remote.receive()
    remote.abandon()
    server.otherwise.clear()
    remote.send(0, hidden(2))
    assert torch.equal(remote.receive().hidden, hidden(2))


# Opening and resuming


@pytest.mark.parametrize(
    "answer",
    [
        frames.encode(frames.Resumed(1, 0, bytes(8))),
        frames.encode(frames.Result(1, 0, 1, 0), bytes(ROW)),
        frames.encode(INFO),
        packed(Kind.OPENED, [bytes(15), 1, 1, 1]),
        packed(Kind.OPENED, [bytes(16), 1, 1 << 25, 1]),
        packed(Kind.OPENED, [bytes(16), 1, 1, 0]),
    ],
)
def test_a_session_that_was_not_opened_is_not_used(answer: bytes) -> None:
    with pytest.raises((ProtocolError, FrameError)):
        opened(FakeServer({Kind.OPEN: lambda *_: answer}))


@pytest.mark.parametrize("code", [RemoteCode.UNKNOWN_SESSION, RemoteCode.STALE_EPOCH, RemoteCode.PREFIX_MISMATCH])
def test_a_server_that_always_sends_the_client_back_is_given_up(code: RemoteCode) -> None:
    """And has not made it replay more than a few times by then."""
    server = FakeServer({Kind.STEP: lambda *_: packed(Kind.ERROR, [code, "again", False])})
    started = time.monotonic()
    with pytest.raises((RemoteError, ConnectionLostError)):
        stepped(server)
    assert time.monotonic() - started < 20
    assert server.connections < 20


@pytest.mark.parametrize(
    "answer",
    [
        lambda resume, _: frames.encode(frames.Resumed(resume.epoch + 1, 0, bytes(8))),
        lambda resume, _: frames.encode(frames.Opened(bytes(16), 1, 256, 64)),
        lambda resume, _: frames.encode(frames.Result(1, 0, 2, 0), bytes(2 * ROW)),
    ],
)
def test_a_resume_that_is_no_resume_is_an_error(answer: Callable[..., Answer]) -> None:
    server = FakeServer({Kind.STEP: lambda *_: None, Kind.RESUME: answer})
    with pytest.raises(ProtocolError):
        stepped(server)


@pytest.mark.parametrize("position", [0, 1, 2, 3, 1 << 24])
def test_a_lie_about_what_is_held_costs_one_replay(position: int) -> None:
    server = FakeServer(
        {Kind.RESUME: lambda resume, _: frames.encode(frames.Resumed(resume.epoch, position, b"liesLIES"))}
    )
    remote = opened(server)
    remote.send(0, hidden(2))
    remote.receive()
    before = server.received
    remote._transport.send = remote._transport.recv = _lost
    remote.send(2, hidden(1))
    assert torch.equal(remote.receive().hidden, hidden(1))
    assert server.received - before < 4 * ROW + 200


def _lost(*_: object) -> bytes:
    raise ConnectionLostError("lost")


# What the server says it is


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models, and a working directory beside it."""
    monkeypatch.setenv("CUTLAYER_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def connected(info: frames.InfoReply, **options: Any) -> Client:
    return Client(FakeServer({Kind.INFO: lambda *_: frames.encode(info)}), Options(patience=PATIENCE, **options))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc", "/etc", "./model", "here/../model", "..", ".", "", "~", "~root", "hf:evil/model", "C:\\model",
        "\\\\host\\share", "model/", "file:///etc", "%2e%2e", "model\u2215x", "a" * 256,
    ],
)  # fmt: skip
def test_no_name_leads_to_a_path_or_a_download(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.models.hub.from_hub", _never)
    monkeypatch.setattr("cutlayer.client.trusted.locate", _never)
    with pytest.raises(ModelNotFoundError, match="was not pulled here"):
        connected(msgspec.structs.replace(INFO, model=name))


def _never(*_: object, **__: object) -> None:
    raise AssertionError("must not be called")


def test_a_directory_in_the_working_directory_is_not_a_pulled_model(home: Path, tiny: Callable[[str], Path]) -> None:
    """Neither when a half-finished download has left a folder of that name in the cache."""
    (home / "here" / "model").symlink_to(tiny("llama"))
    (home / "home" / "models" / "model").mkdir()
    print_of = fingerprint(tiny("llama"))
    with pytest.raises(ModelNotFoundError):
        connected(msgspec.structs.replace(INFO, model="model", fingerprint=print_of))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"cut": Cut(0, 6, 6)}, CutError),  # asked for 2:-2
        ({"cut": Cut(2, 5, 7)}, CutError),
        ({"hidden_size": 31}, ProtocolError),
        ({"hidden_size": 1 << 20}, ProtocolError),
        ({"fingerprint": "0" * 32}, RemoteError),
        ({"protocol": 2}, ProtocolError),
    ],
)
def test_a_server_that_is_not_what_was_asked_for_is_left(
    tiny: Callable[[str], Path], changed: dict[str, Any], error: type[CutlayerError]
) -> None:
    honest = msgspec.structs.replace(INFO, fingerprint=fingerprint(tiny("llama")))
    with pytest.raises(error):
        connected(msgspec.structs.replace(honest, **changed), model=str(tiny("llama")), cut="2:-2")


@pytest.mark.parametrize(
    "fields",
    [
        [1, "", "m", "f", [0, 7, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0],  # a cut beyond the model
        [1, "", "m", "f", [3, 3, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [-1, 3, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "complex64", "cpu", 32, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "float32", "cpu", 0, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "float32", "cpu", 32, 256, [], float("inf"), [], 0],
        [1, "", f"m{ESCAPES}", "f", [0, 6, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "float32", f"cpu{ESCAPES}", 32, 256, [], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "float32", "cpu", 32, 256, [ESCAPES], 0.0, [], 0],
        [1, "", "m", "f", [0, 6, 6], "float32", "cpu", 32, 256, [], 0.0, [ESCAPES], 0],
        [1, ESCAPES, "m", "f", [0, 6, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0],
    ],
)
def test_an_impossible_description_is_no_description(home: Path, fields: list[object]) -> None:
    server = FakeServer({Kind.INFO: lambda *_: packed(Kind.INFO_REPLY, fields)})
    with pytest.raises(FrameError) as caught:
        Client(server, Options(patience=PATIENCE))
    assert str(caught.value).isprintable()


# What reaches the terminal


@contextlib.contextmanager
def listening(handler: Callable[[Any], None], **options: Any) -> Iterator[str]:
    """A real WebSocket server that behaves as `handler` does."""
    options.setdefault("subprotocols", [frames.SUBPROTOCOL])
    with ws_serve(handler, "127.0.0.1", 0, compression=None, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def _refusing(connection: Any) -> None:
    connection.recv()
    connection.send(packed(Kind.ERROR, ["internal", f"sorry {ESCAPES}", True]))


def _lying(connection: Any) -> None:
    connection.recv()
    connection.send(
        packed(Kind.INFO_REPLY, [1, "", f"model{ESCAPES}", "f", [0, 6, 6], "float32", "cpu", 32, 256, [], 0.0, [], 0])
    )


def _inventing(connection: Any) -> None:
    connection.recv()
    connection.send(packed(Kind.ERROR, [f"code{ESCAPES}", "", True]))


def _leaving(connection: Any) -> None:
    connection.recv()
    connection.close(4000, f"bye {ESCAPES}")


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
@pytest.mark.parametrize("handler", [_refusing, _lying, _inventing, _leaving])
def test_no_control_character_of_the_servers_reaches_the_terminal(
    handler: Callable[[Any], None], home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(handler) as url:
        monkeypatch.setattr(sys, "argv", ["cutlayer", "generate", "hello", "--server", url])
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code == 1
    shown = capfd.readouterr()
    assert "cutlayer: " in shown.err
    assert all(line.isprintable() for line in (shown.out + shown.err).split("\n"))


@pytest.mark.parametrize(
    "response",
    [
        b"\x1b[31m\r\n\r\n",
        b"HTTP/1.1 418 I'm \x1b[31mred\r\n\r\n",
        b"HTTP/1.1 101 ok\r\nUpgrade: \x9b31mwebsocket\r\nConnection: \x1b[31m\r\n\r\n",
        b"HTTP/1.1 200 ok\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 101 ok\r\n" + b"X: y\r\n" * 5000,
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
    ids=lambda response: response[:14].hex(),
)
def test_answers_that_are_no_upgrade_are_lost_connections_in_printable_words(response: bytes) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(response)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionLostError) as caught:
            dialler(f"ws://127.0.0.1:{listener.getsockname()[1]}")()
        thread.join()
    assert str(caught.value).isprintable()


# The network


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(status: str) -> None:
    """The URL was checked to be loopback or TLS; where a server points to was not."""
    visited = threading.Event()

    def elsewhere(connection: Any) -> None:
        visited.set()

    def redirect() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 {status}\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())

    with listening(elsewhere) as target, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=redirect)
        thread.start()
        with pytest.raises(ConnectionLostError, match="never follows"):
            dialler(f"ws://127.0.0.1:{listener.getsockname()[1]}")()
        thread.join()
    assert not visited.is_set()


@pytest.mark.parametrize("offered", [None, ["chat"]])
def test_a_server_that_speaks_something_else_is_left(offered: list[str] | None) -> None:
    options = {"subprotocols": offered, "select_subprotocol": lambda *_: offered[0] if offered else None}
    with listening(_refusing, **options) as url, pytest.raises(ConnectionLostError):
        dialler(url)()


def test_a_message_beyond_the_limit_is_not_taken() -> None:
    def flooding(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(bytes(1 << 20))

    with listening(flooding) as url:
        transport = WebSocketTransport(url, None, None, max_message_bytes=1 << 16)
        with pytest.raises(ConnectionLostError, match="1009"):
            transport.recv(10)
        transport.close()


def test_messages_nobody_asked_for_are_not_hoarded() -> None:
    """A client holds a few and leaves the rest to TCP, which stops the server."""
    sent = 0
    stalled = threading.Event()

    def flooding(connection: Any) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                connection.send(bytes(1 << 18))
                sent += 1
        stalled.set()

    with listening(flooding) as url:
        transport = WebSocketTransport(url, None, None, max_message_bytes=1 << 20)
        assert not stalled.wait(1.0)
        assert sent < 100
        transport.close()
        assert stalled.wait(10)


def test_a_server_that_takes_nothing_does_not_hold_the_client_forever() -> None:
    """Its kernel acknowledges what arrives until the window is full; from then on a send would wait without end."""
    release = threading.Event()

    def deaf() -> None:
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(4096).decode()
            key = next(
                line.split(": ")[1] for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key")
            )
            connection.sendall(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept_key(key)}\r\nSec-WebSocket-Protocol: {frames.SUBPROTOCOL}\r\n\r\n".encode()
            )
            release.wait(60)

    from websockets.utils import accept_key

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=deaf)
        thread.start()
        transport = WebSocketTransport(
            f"ws://127.0.0.1:{listener.getsockname()[1]}", None, None, max_message_bytes=1 << 20, keepalive_s=0.5
        )
        started = time.monotonic()
        with pytest.raises(ConnectionLostError):
            transport.send(bytes(64 << 20))
        assert time.monotonic() - started < 20
        release.set()
        transport.close()
        thread.join()


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    def silent(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                connection.recv()

    with listening(silent) as url:
        remote = RemoteBody(dialler(url), PATIENCE)
        started = time.monotonic()
        with pytest.raises(ConnectionLostError, match=r"no answer within 1\.0 s"):
            remote.info()
        assert time.monotonic() - started < 10
        remote.close()
