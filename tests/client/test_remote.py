"""A remote body on a bad line: outputs are those of an undisturbed run, whatever breaks and whenever.

Where nothing has to be computed twice they are equal to the bit. After a server lost its sessions, rows are replayed in other
chunks than they first came in, and a matrix product of another shape rounds differently.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.client.decoder import Decoder
from cutlayer.client.remote import Patience, RemoteBody
from cutlayer.defences.defence import build_defence
from cutlayer.errors import ConnectionLostError, NonFiniteError, ProtocolError, RemoteCode, RemoteError
from cutlayer.models.parts import load_client
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.server.sessions import Limits
from cutlayer.types import Secret
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.server.service import Service
    from cutlayer.wire.memory import MemoryTransport

HIDDEN = 32
CODEC = CODECS.get("fp32")
PATIENCE = Patience(step_s=20, recover_s=20)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def service(tiny: Callable[[str], Path]) -> Iterator[Service]:
    service = build_service(tiny("llama"), "tiny", "2:-2", "float32", limits=Limits(positions=128, step_positions=16))
    with LocalServer(service) as server:
        service.local = server
        yield service


@pytest.fixture
def server(service: Service) -> LocalServer:
    service.table.clear()
    return service.local


def opened(server: LocalServer, connect: Callable[[], MemoryTransport] | None = None) -> RemoteBody:
    remote = RemoteBody(connect or server.connect, PATIENCE)
    info = server.service.info
    remote.open(info.fingerprint, info.cut, CODEC, HIDDEN)
    return remote


def hidden(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))  # [T, D]


def script(seed: int, length: int = 25) -> list[tuple[int, list[torch.Tensor]]]:
    """Rollback positions, each followed by chunks that are all sent before the first answer is awaited."""
    chance = random.Random(seed)
    position, acts = 0, []
    for number in range(length):
        base = max(0, position - chance.choice([0, 0, 0, 1, 3, 9])) if position < 100 else 0
        chunks = [
            hidden(chance.randint(1, 6), 1000 * seed + 10 * number + i) for i in range(chance.choice([1, 1, 1, 4]))
        ]
        acts.append((base, chunks))
        position = base + sum(map(len, chunks))
    return acts


def play(remote: RemoteBody, acts: list[tuple[int, list[torch.Tensor]]]) -> list[torch.Tensor]:
    outputs = []
    for base, chunks in acts:
        for chunk in chunks:
            remote.send(base, chunk)
            base += len(chunk)
        outputs += [remote.receive().hidden for _ in chunks]
    return outputs


class Cable:
    """Connects to a server and breaks at random before or after a message passes, in both directions."""

    def __init__(self, server: LocalServer, chance: random.Random, rate: float) -> None:
        self._server, self._chance, self._rate = server, chance, rate
        self.breaks = 0

    def __call__(self) -> MemoryTransport:
        transport = self._server.connect()
        send, recv = transport.send, transport.recv

        def flaky_send(data: bytes) -> None:
            self._maybe(transport)
            send(data)
            self._maybe(transport)

        def flaky_recv(timeout_s: float | None = None) -> bytes:
            self._maybe(transport)
            data = recv(timeout_s)
            if self._maybe(transport):
                raise ConnectionLostError("the answer was lost")
            return data

        transport.send, transport.recv = flaky_send, flaky_recv
        return transport

    def _maybe(self, transport: MemoryTransport) -> bool:
        broken = self._chance.random() < self._rate
        if broken:
            self.breaks += 1
            transport.break_connection()
        return broken


@pytest.mark.parametrize("seed", range(6))
def test_outputs_equal_an_undisturbed_run_on_a_line_that_breaks(
    server: LocalServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutlayer.client.remote._LONGEST_PAUSE_S", 0.001)
    acts = script(seed)
    undisturbed = play(opened(server), acts)
    cable = Cable(server, random.Random(seed), rate=0.0)
    remote = opened(server, cable)
    cable._rate = 0.08
    disturbed = play(remote, acts)
    assert cable.breaks > 10
    assert remote._attempts == 0
    assert remote.traffic.resumes > 0
    assert all(map(torch.equal, undisturbed, disturbed))
    assert len(server.service.table) == 2


@pytest.mark.parametrize("seed", range(3))
def test_outputs_agree_when_the_server_forgets_its_sessions(server: LocalServer, seed: int) -> None:
    acts = script(seed)
    undisturbed = play(opened(server), acts)
    chance = random.Random(seed)
    remote = opened(server)
    disturbed = []
    for act in acts:
        if chance.random() < 0.4:
            server.service.table.clear()
        disturbed += play(remote, [act])
    assert remote.traffic.resumes > 3
    assert all((a - b).abs().max() < TOLERANCE for a, b in zip(undisturbed, disturbed, strict=True))


def test_a_break_after_a_rollback_replays_nothing(server: LocalServer) -> None:
    """As after a rejected draft: most of the prefix is still good."""
    remote = opened(server)
    play(remote, [(0, [hidden(16, 1), hidden(16, 2)])])
    sent = remote.traffic.sent
    remote._transport.break_connection()
    play(remote, [(20, [hidden(1, 3)])])
    assert remote.traffic.sent - sent < 2 * CODEC.row_bytes(HIDDEN)


@pytest.mark.parametrize("code", [RemoteCode.UNKNOWN_SESSION, RemoteCode.STALE_EPOCH])
def test_a_resume_that_is_refused_opens_anew_on_another_connection(server: LocalServer, code: RemoteCode) -> None:
    remote = opened(server)
    first = play(remote, [(0, [hidden(4, 1)])])
    held = next(iter(server.service.table._sessions.values()))
    if code is RemoteCode.STALE_EPOCH:
        held.wire.epoch = 1000
    else:
        server.service.table.close(held)
    remote._transport.break_connection()
    again = play(remote, [(0, [hidden(4, 1)])])
    assert torch.equal(first[0], again[0])


def test_a_resume_whose_answer_is_lost_finds_its_session_again(server: LocalServer) -> None:
    lost: list[bytes] = []

    def connect() -> MemoryTransport:
        transport = server.connect()
        recv = transport.recv

        def losing(timeout_s: float | None = None) -> bytes:
            data = recv(timeout_s)
            if data[0] == frames.Kind.RESUMED and len(lost) < 3:
                lost.append(data)
                transport.break_connection()
                raise ConnectionLostError("the answer was lost")
            return data

        transport.recv = losing
        return transport

    remote = opened(server, connect)
    play(remote, [(0, [hidden(4, 1)])])
    remote._transport.break_connection()
    play(remote, [(4, [hidden(1, 2)])])
    assert len(lost) == 3
    assert len(server.service.table) == 1


def test_a_server_that_dropped_a_row_is_put_right(server: LocalServer) -> None:
    """A prefix that differs is found by its digest and replayed into the same session."""
    remote = opened(server)
    acts = [(0, [hidden(8, 1)]), (8, [hidden(1, 2)])]
    expected = play(opened(server), acts)[1]
    play(remote, acts[:1])
    held = list(server.service.table._sessions.values())[1]
    held.wire._digests._digests[5:] = [bytes([i]) * 8 for i in range(4)]
    assert torch.equal(play(remote, acts[1:])[0], expected)
    assert len(server.service.table) == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ConnectionLostError])
def test_after_an_interruption_the_session_goes_on_from_before(
    server: LocalServer, interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping an answer with Ctrl-C must not end the conversation."""
    undisturbed = play(opened(server), [(0, [hidden(4, 1)]), (4, [hidden(2, 3)])])
    remote = opened(server)
    play(remote, [(0, [hidden(4, 1)])])
    remote.send(4, hidden(3, 2))
    remote.send(7, hidden(1, 9))

    def interrupted() -> bytes:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_recv", interrupted)
        if interruption is ConnectionLostError:
            patch.setattr(remote, "_recover", lambda *_: interrupted())
        with pytest.raises(interruption):
            remote.receive()
    remote.abandon()
    assert torch.equal(play(remote, [(4, [hidden(2, 3)])])[0], undisturbed[1])


def test_after_a_refusal_the_session_goes_on(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = opened(server)
    expected = play(opened(server), [(0, [hidden(4, 1)]), (4, [hidden(1, 2)])])
    play(remote, [(0, [hidden(4, 1)])])

    async def broken(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(server.service.engine, "run", broken)
        for base in (4, 6, 8):
            remote.send(base, hidden(2, base))
        with pytest.raises(RemoteError) as caught:
            remote.receive()
        assert caught.value.code is RemoteCode.INTERNAL
    remote.abandon()
    assert torch.equal(play(remote, [(4, [hidden(1, 2)])])[0], expected[1])


def test_abandoning_nothing_costs_nothing(server: LocalServer) -> None:
    remote = opened(server)
    play(remote, [(0, [hidden(4, 1)])])
    remote.abandon()
    play(remote, [(4, [hidden(1, 1)])])
    assert remote.traffic.resumes == 0


def test_values_the_codec_cannot_carry_are_not_sent(server: LocalServer) -> None:
    remote = opened(server)
    bad = hidden(2, 1)
    bad[1, 3] = torch.nan
    with pytest.raises(NonFiniteError):
        remote.send(0, bad)
    assert len(play(remote, [(0, [hidden(2, 1)])])[0]) == 2


@pytest.mark.parametrize(("backs", "words"), [([1, 256], "follows one 256 back"), ([1, -1], "follows one -1 back")])
def test_what_no_byte_can_name_is_not_sent(server: LocalServer, backs: list[int], words: str) -> None:
    remote = opened(server)
    play(remote, [(0, [hidden(4, 1)])])
    with pytest.raises(ProtocolError, match=words):
        remote.send(4, hidden(2, 2), backs)
    remote.send(4, hidden(3, 2), [1, 2, 2])
    remote.receive()
    remote.keep(4, [0, 300])
    with pytest.raises(ProtocolError, match="slot 304 of the kept path"):
        remote.send(6, hidden(1, 3))
    remote.keep(4, [0, 2])
    play(remote, [(6, [hidden(1, 3)])])
    assert remote.traffic.resumes == 0


def test_nobody_waits_for_what_was_not_sent(server: LocalServer) -> None:
    with pytest.raises(ProtocolError, match="no step is waiting"):
        opened(server).receive()
    with pytest.raises(ProtocolError, match="no session"):
        RemoteBody(server.connect).receive()


def test_a_server_that_stays_away_exhausts_the_patience(server: LocalServer) -> None:
    def away() -> MemoryTransport:
        raise ConnectionLostError("nobody there")

    remote = opened(server)
    remote._patience = Patience(step_s=1, recover_s=0.2)
    remote._connect = away
    remote._transport.break_connection()
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="gave up after 0 s: nobody there"):
        remote.send(0, hidden(1, 1))
    assert time.monotonic() - started < 10


def test_a_server_that_always_fails_the_same_step_is_not_overrun(server: LocalServer) -> None:
    """Each recovery succeeds and each step after it fails; pauses grow all the same."""
    remote = opened(server)
    remote._patience = Patience(step_s=0.5, recover_s=0.5)
    send = remote._send
    attempts = []

    def failing(data: bytes) -> None:
        send(data)
        if data[0] == frames.Kind.STEP:
            attempts.append(time.monotonic())
            remote._transport.break_connection()
            remote._transport.recv = remote._transport.send = _lost

    remote._send = failing
    remote.send(0, hidden(1, 1))
    with pytest.raises(ConnectionLostError):
        remote.receive()
    assert 3 <= len(attempts) < 12


def _lost(*_: object) -> bytes:
    raise ConnectionLostError("lost")


def test_abort_ends_the_waiting_of_another_thread_for_good(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = opened(server)
    arrived = threading.Event()

    async def stuck(*_: object) -> None:
        arrived.set()
        await asyncio.sleep(60)  # until the server stops

    monkeypatch.setattr(server.service.engine, "run", stuck)
    remote.send(0, hidden(1, 1))
    assert arrived.wait(10)
    threading.Timer(0.05, remote.abort).start()
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="aborted"):
        remote.receive()
    assert time.monotonic() - started < 10
    with pytest.raises(ConnectionLostError):
        remote.receive()
    remote.close()


def test_closing_frees_the_servers_memory(server: LocalServer) -> None:
    remote = opened(server)
    play(remote, [(0, [hidden(4, 1)])])
    engine = server.service.engine
    assert engine.cache_bytes() > 0
    remote.close()
    deadline = time.monotonic() + 10
    while engine.cache_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.service.table) == 0
    assert engine.cache_bytes() == 0


def test_a_conversation_goes_on_after_an_answer_was_stopped(
    server: LocalServer, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does in the middle of a long prompt, with chunks under way."""
    parts = load_client(tiny("llama"), server.service.info.cut, torch.float32)
    prompt, other = list(range(3, 70)), list(range(30, 50))

    def decoder() -> Decoder:
        return Decoder(parts, opened(server), build_defence("none", Secret(bytes(32))))

    undisturbed = decoder()
    expected = [undisturbed.extend(prompt[:9]), undisturbed.extend(other)]
    disturbed = decoder()
    got = [disturbed.extend(prompt[:9])]
    receive, calls = disturbed._remote.receive, []

    def interrupted() -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return receive()

    with monkeypatch.context() as patch:
        patch.setattr(disturbed._remote, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            disturbed.extend(prompt[9:])
    assert disturbed.ids == prompt[:9]
    got.append(disturbed.extend(other))
    assert all(map(torch.equal, expected, got))


def test_closing_after_an_interrupted_step_frees_the_session(server: LocalServer) -> None:
    """Ctrl-C gives the connection up together with the answer that is still due; the server's memory must not wait for expiry."""
    remote = opened(server)
    remote.send(0, hidden(3, seed=1))
    remote.abandon()
    assert len(server.service.table) == 1
    remote.close()
    deadline = time.monotonic() + 10
    while len(server.service.table) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.service.table) == 0
