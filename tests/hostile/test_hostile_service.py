"""A hostile client against the live service, next to a victim that must not notice.

Every test runs a victim's session alongside, step by step between the attacker's frames, and compares its outputs to the bit
with those of an undisturbed run. Where the attacker's own session is not ended by a fatal error, it too must be as it was.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

from cutlayer.client.remote import RemoteBody
from cutlayer.errors import ConnectionLostError, FrameError, ProtocolError, RemoteCode
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.server.sessions import Limits
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.bitmap import bitmap
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.prefix import PrefixDigests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.server.service import Service

HIDDEN = 32
CODEC = CODECS.get("fp32")
ROW = CODEC.row_bytes(HIDDEN)
LIMITS = Limits(sessions=6, positions=64, step_positions=8)
WAIT_S = 20


@pytest.fixture(scope="module")
def service(tiny: Callable[[str], Path]) -> Iterator[Service]:
    service = build_service(tiny("llama"), "tiny", "2:-2", "float32", limits=LIMITS)
    with LocalServer(service) as server:
        service.local = server
        yield service


@pytest.fixture(autouse=True)
def _empty_table(service: Service) -> None:
    service.table._sessions.clear()


class Raw:
    """A connection that says whatever it is told to."""

    def __init__(self, service: Service, identity: str = "mallory") -> None:
        self.transport = service.local.connect(identity)
        self.info = service.info
        self.sequence = 0
        self.rows = b""

    def ask(self, data: bytes) -> frames.Frame:
        self.transport.send(data)
        return frames.decode(self.transport.recv(WAIT_S))

    def say(self, header: frames.Header, payload: bytes = b"") -> Any:
        return self.ask(frames.encode(header, payload)).header

    def open(self, **changed: Any) -> Any:
        fields = {
            "protocol": 1,
            "fingerprint": self.info.fingerprint,
            "cut": self.info.cut,
            "codec": "fp32",
            "max_positions": 0,
        }
        return self.say(frames.Open(**{**fields, **changed}))

    def step(self, rows: bytes, **changed: Any) -> frames.Frame:
        """The next step, right in every respect that is not changed."""
        count = max(1, len(rows) // ROW)
        fields = {
            "sequence": self.sequence + 1, "base": len(self.rows) // ROW, "count": count, "flags": 0, "digest": digest(self.rows)
        }  # fmt: skip
        fields |= changed
        answer = self.ask(frames.encode(frames.Step(**fields), rows))
        if isinstance(answer.header, frames.Result):
            self.sequence = fields["sequence"]
            self.rows = self.rows[: fields["base"] * ROW] + rows
        return answer

    def refused(self, answer: Any, code: RemoteCode, *, fatal: bool = False) -> None:
        """`answer` is that refusal; a fatal one ends the connection, any other leaves the session as it was."""
        header = getattr(answer, "header", answer)
        assert isinstance(header, frames.Failure), header
        assert (header.code, header.fatal) == (code, fatal)
        if fatal:
            with pytest.raises(ConnectionLostError):
                self.transport.recv(WAIT_S)

    def still_right(self) -> None:
        """The session goes on from exactly the rows it had."""
        seed = len(self.rows)
        answer = self.step(encoded(1, seed))
        assert isinstance(answer.header, frames.Result), answer.header
        assert bytes(answer.payload) == expected_of(self.info, self.rows)[-ROW:]


def encoded(count: int, seed: int) -> bytes:
    return CODEC.encode(hidden(count, seed))


def hidden(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))  # [T, D]


def digest(rows: bytes) -> bytes:
    digests = PrefixDigests()
    digests.extend(rows, ROW)
    return digests.at(len(rows) // ROW)


_REFERENCE: dict[bytes, bytes] = {}
_SERVICES: dict[int, Service] = {}


def expected_of(info: frames.InfoReply, rows: bytes) -> bytes:
    """What the body makes of rows that are run as the attacker below runs them: the first four together, then one by one."""
    if rows not in _REFERENCE:
        service = _SERVICES[id(info)]
        alone = Raw(service, "reference")
        alone.open()
        outputs = bytes(alone.step(rows[: 4 * ROW]).payload)
        for at in range(4 * ROW, len(rows), ROW):
            outputs += bytes(alone.step(rows[at : at + ROW]).payload)
        alone.say(frames.Close())
        alone.transport.close()
        _REFERENCE[rows] = outputs
    return _REFERENCE[rows]


class Victim:
    """A well-behaved client that decodes one row at a time."""

    STEPS = 40

    def __init__(self, service: Service) -> None:
        self.remote = RemoteBody(lambda: service.local.connect("alice"))
        self.remote.open(service.info.fingerprint, service.info.cut, CODEC, HIDDEN)
        self.outputs: list[torch.Tensor] = []

    def step(self) -> None:
        number = len(self.outputs)
        self.remote.send(number, hidden(1, 5000 + number))
        self.outputs.append(self.remote.receive().hidden)


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> list[torch.Tensor]:
    _SERVICES[id(service.info)] = service
    victim = Victim(service)
    for _ in range(Victim.STEPS):
        victim.step()
    victim.remote.close()
    return victim.outputs


@pytest.fixture
def victim(service: Service, undisturbed: list[torch.Tensor]) -> Iterator[Victim]:
    """Some steps before the attack, some after, no recovery in between."""
    victim = Victim(service)
    for _ in range(3):
        victim.step()
    yield victim
    for _ in range(3):
        victim.step()
    assert all(map(torch.equal, victim.outputs, undisturbed))
    assert victim.remote.traffic.resumes == 0
    victim.remote.close()


@pytest.fixture
def mallory(service: Service, victim: Victim) -> Iterator[Raw]:
    """The attacker, with a session of its own at position 4."""
    raw = Raw(service)
    raw.open()
    raw.step(encoded(4, 1))
    assert bytes(raw.rows) == encoded(4, 1)
    yield raw
    raw.transport.close()


# Steps that are wrong in one respect: refused, not fatal, and the session goes on


@pytest.mark.parametrize(
    ("rows", "changed", "code"),
    [
        (encoded(1, 2), {"sequence": 9}, RemoteCode.BAD_STEP),
        (encoded(1, 2), {"sequence": 0}, RemoteCode.BAD_STEP),
        (encoded(1, 2), {"sequence": 65535}, RemoteCode.BAD_STEP),
        (encoded(1, 2), {"base": 5}, RemoteCode.BAD_STEP),
        (encoded(1, 2), {"base": frames.MAX_POSITIONS}, RemoteCode.BAD_STEP),
        (encoded(1, 2)[:-1], {}, RemoteCode.BAD_STEP),
        (encoded(1, 2) + b"\0", {}, RemoteCode.BAD_STEP),
        (b"", {}, RemoteCode.BAD_STEP),
        (encoded(2, 2), {"count": 1}, RemoteCode.BAD_STEP),
        (encoded(1, 2), {"count": 2}, RemoteCode.BAD_STEP),
        (CODECS.get("fp16").encode(hidden(1, 2)), {"count": 1}, RemoteCode.BAD_STEP),  # another codec's width
        (encoded(9, 2), {}, RemoteCode.LIMIT),
        (encoded(1, 2), {"count": 4096}, RemoteCode.LIMIT),
        (encoded(1, 2), {"digest": bytes(8)}, RemoteCode.PREFIX_MISMATCH),
        (encoded(1, 2), {"base": 3}, RemoteCode.PREFIX_MISMATCH),
    ],
    ids=lambda value: f"{len(value)}-bytes" if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_a_wrong_step_is_refused_and_changes_nothing(
    mallory: Raw, victim: Victim, rows: bytes, changed: dict[str, Any], code: RemoteCode
) -> None:
    for _ in range(3):
        mallory.refused(mallory.step(rows, **changed), code)
        victim.step()
    mallory.still_right()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, HIDDEN, 2 * HIDDEN - 1])
def test_values_that_are_not_finite_never_reach_the_model(mallory: Raw, victim: Victim, bad: float, at: int) -> None:
    rows = hidden(2, 2)
    rows.view(-1)[at] = bad
    mallory.refused(mallory.step(rows.numpy().tobytes()), RemoteCode.NON_FINITE)
    victim.step()
    mallory.still_right()


def test_values_that_overflow_in_the_model_hurt_only_their_own_step(mallory: Raw, victim: Victim) -> None:
    """Finite on the wire, infinite after a layer: the step is forgotten, the prefix stays."""
    huge = torch.full((1, HIDDEN), torch.finfo(torch.float32).max).numpy().tobytes()
    answer = mallory.step(huge)
    victim.step()
    if isinstance(answer.header, frames.Result):  # the family's norms swallowed it: then it is an ordinary row
        return
    mallory.refused(answer, RemoteCode.NON_FINITE)
    mallory.still_right()


def test_a_replayed_step_gives_the_same_answer_and_an_older_one_none(mallory: Raw, victim: Victim) -> None:
    before = mallory.rows
    row = encoded(1, 3)
    first = mallory.step(row)
    again = mallory.ask(frames.encode(frames.Step(mallory.sequence, 4, 1, 0, digest(before)), row))
    assert bytes(first.payload) == bytes(again.payload)
    mallory.step(encoded(1, 4))
    stale = frames.encode(frames.Step(mallory.sequence - 1, 4, 1, 0, digest(before)), row)
    mallory.refused(mallory.ask(stale), RemoteCode.BAD_STEP)
    victim.step()
    mallory.still_right()


def test_the_session_ends_at_its_limit(mallory: Raw, victim: Victim) -> None:
    while len(mallory.rows) < LIMITS.positions * ROW:
        assert isinstance(mallory.step(encoded(4, len(mallory.rows))).header, frames.Result)
    mallory.refused(mallory.step(encoded(1, 9)), RemoteCode.LIMIT)
    mallory.refused(
        mallory.step(encoded(2, 9), base=LIMITS.positions - 1, digest=digest(mallory.rows[:-ROW])), RemoteCode.LIMIT
    )
    victim.step()
    assert isinstance(mallory.step(encoded(1, 9), base=63, digest=digest(mallory.rows[:-ROW])).header, frames.Result)


# Guesses: rows that branch, and paths that are kept of them

GUESSES = encoded(5, 7)
BACKS = bytes([1, 2, 2, 3, 2])
"""Rows 4 … 8, of which 4, 6 and 8 follow one another:  3 ─ 4 ─ 6 ─ 8, 3 ─ 5, 4 ─ 7."""
KEPT = bytes([0b101])
"""Rows 4 and 6: one bit for each row from 4 on, the lowest first."""


def guess(raw: Raw) -> bytes:
    """Send `GUESSES` after the four rows; what is held once `KEPT` is kept."""
    answer = raw.ask(frames.encode(frames.Step(2, 4, 5, 0, digest(raw.rows), parents=BACKS), GUESSES))
    assert isinstance(answer.header, frames.Result)
    raw.sequence = 2
    return raw.rows + GUESSES[:ROW] + GUESSES[2 * ROW : 3 * ROW]


def go_on(raw: Raw, kept: bytes) -> None:
    """Keep the path: row 6 moves to 5, and what comes after sees that and nothing beside it."""
    row = encoded(1, 9)
    answer = raw.ask(frames.encode(frames.Step(3, 6, 1, 0, digest(kept), KEPT), row))
    assert isinstance(answer.header, frames.Result), answer.header
    alone = expected_of(raw.info, kept + row)[-ROW:]
    found = CODEC.decode(answer.payload, HIDDEN)
    assert torch.allclose(found, CODEC.decode(alone, HIDDEN), atol=1e-4)
    raw.sequence, raw.rows = 3, kept + row
    answer = raw.step(encoded(1, 10))
    assert isinstance(answer.header, frames.Result), answer.header


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"kept": bytes([0b11])}, RemoteCode.BAD_STEP),  # siblings
        ({"kept": bytes([0b10001])}, RemoteCode.BAD_STEP),  # a grandchild
        ({"kept": bytes([0b10100])}, RemoteCode.BAD_STEP),  # does not begin at the trunk
        ({"kept": bytes([0b100001])}, RemoteCode.BAD_STEP),  # beyond what is held
        ({"kept": bytes([1, 0, 0, 1])}, RemoteCode.BAD_STEP),
        ({"kept": bytes([1, *bytes(510), 0x80])}, RemoteCode.BAD_STEP),
        ({"kept": bytes([0b111111])}, RemoteCode.BAD_STEP),  # all and one more
        ({"kept": bytes([0b1111111])}, RemoteCode.BAD_STEP),  # from before the first row
        ({"kept": b"\xff" * 512}, RemoteCode.BAD_STEP),
        ({"base": 9, "kept": bytes([0b1])}, RemoteCode.BAD_STEP),  # from among the guesses
        ({"base": 10, "kept": KEPT}, RemoteCode.BAD_STEP),
        ({"parents": bytes([1])}, RemoteCode.BAD_STEP),
        ({"parents": bytes([1, 1, 1])}, RemoteCode.BAD_STEP),
        ({"parents": bytes(4096)}, RemoteCode.BAD_STEP),
        ({"parents": bytes([0, 1])}, RemoteCode.BAD_STEP),
        ({"parents": bytes([1, 0])}, RemoteCode.BAD_STEP),
        ({"parents": bytes([8, 1])}, RemoteCode.BAD_STEP),  # from before the first row
        ({"parents": bytes([1, 255])}, RemoteCode.BAD_STEP),
        ({"kept": b""}, RemoteCode.PREFIX_MISMATCH),
        ({"kept": bytes(3)}, RemoteCode.PREFIX_MISMATCH),  # of none
        ({"kept": bytes([0b1001])}, RemoteCode.PREFIX_MISMATCH),  # a path, but not the one the digest names
        ({"kept": bytes([0b10101]), "base": 7}, RemoteCode.PREFIX_MISMATCH),
    ],
    ids=lambda value: " ".join(f"{k}={v[:8]}" if isinstance(v, bytes) else f"{k}={v}" for k, v in value.items())
    if isinstance(value, dict)
    else str(value),
)  # fmt: skip
def test_a_wrong_path_or_parent_is_refused_and_changes_nothing(
    mallory: Raw, victim: Victim, changed: dict[str, Any], code: RemoteCode
) -> None:
    kept = guess(mallory)
    right = {"sequence": 3, "base": 6, "count": 2, "flags": 0, "digest": digest(kept), "kept": KEPT}
    for _ in range(2):
        mallory.refused(mallory.ask(frames.encode(frames.Step(**(right | changed)), encoded(2, 8))), code)
        victim.step()
    go_on(mallory, kept)


def test_a_path_that_comes_twice_is_kept_once(mallory: Raw, victim: Victim) -> None:
    kept = guess(mallory)
    go_on(mallory, kept)
    mallory.refused(
        mallory.ask(frames.encode(frames.Step(5, 6, 1, 0, digest(kept), KEPT), encoded(1, 9))), RemoteCode.BAD_STEP
    )
    victim.step()
    assert isinstance(mallory.step(encoded(1, 11)).header, frames.Result)


def test_a_path_with_a_bad_payload_is_not_kept(mallory: Raw, victim: Victim) -> None:
    kept = guess(mallory)
    step = frames.Step(3, 6, 1, 0, digest(kept), KEPT)
    mallory.refused(mallory.ask(frames.encode(step, encoded(1, 9)[:-4] + b"\0\0\xc0\x7f")), RemoteCode.NON_FINITE)
    mallory.refused(mallory.ask(frames.encode(step, encoded(2, 9))), RemoteCode.BAD_STEP)
    go_on(mallory, kept)


def test_a_tree_ends_at_the_sessions_limit(mallory: Raw, victim: Victim) -> None:
    while len(mallory.rows) < (LIMITS.positions - 4) * ROW:
        assert isinstance(mallory.step(encoded(4, len(mallory.rows))).header, frames.Result)
    tree = {"parents": bytes([1, 2, 3, 4, 5])}
    mallory.refused(mallory.step(encoded(5, 3), **tree), RemoteCode.LIMIT)
    victim.step()
    assert isinstance(mallory.step(encoded(4, 3), parents=bytes([1, 2, 3, 4])).header, frames.Result)


@pytest.fixture(scope="module")
def roomy(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes the largest trees."""
    directory = tmp_path_factory.mktemp("models") / "roomy"
    shutil.copytree(tiny("llama"), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    service = build_service(directory, "roomy", "2:-2", "float32")
    with LocalServer(service) as server:
        service.local = server
        yield service


def test_guesses_beyond_the_limit_are_refused_and_a_path_makes_room(roomy: Service) -> None:
    raw = Raw(roomy)
    raw.open()
    raw.step(encoded(4, 1))
    first, most = raw.rows, bytes([2] + [1] * 511)
    raw.step(encoded(512, 2), parents=most)
    assert raw.sequence == 2
    among = PrefixDigests()
    among.extend(first, ROW)
    among.extend(encoded(512, 2), ROW, most)
    for _ in range(2):
        answer = raw.step(encoded(1, 3), digest=among.at(516))
        raw.refused(answer, RemoteCode.BAD_STEP)
        assert "keep a path" in answer.header.message
    kept = PrefixDigests()
    kept.extend(first[: 3 * ROW] + encoded(512, 2)[: 200 * ROW], ROW)
    answer = raw.step(encoded(1, 3), base=203, kept=bitmap(range(1, 201), 513), digest=kept.at(203))
    assert isinstance(answer.header, frames.Result), answer.header
    raw.transport.close()


TREES = {
    "deep": [2] + [1] * 511,
    "deep, then wide": [2] + [1] * 255 + [255] * 256,
    "two chains": [2] * 512,
    "wide": [min(i + 1, 255) for i in range(512)],
}


@pytest.mark.parametrize("shape", TREES)
def test_no_tree_costs_much_more_than_a_chain(roomy: Service, shape: str) -> None:
    """Neither when it comes nor in the rows after it."""
    raw = Raw(roomy)
    raw.open()
    prompt, rows, row = encoded(256, 1), encoded(511, 2), encoded(1, 3)
    raw.step(prompt)

    def seconds(backs: list[int]) -> list[float]:
        """Of the processor, for a step of 511 rows and for a single one after them; the least of several."""
        held = PrefixDigests()
        held.extend(prompt, ROW)
        held.extend(rows, ROW, backs)
        many = frames.Step(0, 256, 511, 0, held.at(256), parents=bytes(backs))
        one = frames.Step(0, 767, 1, 0, held.at(767))
        taken: dict[int, list[float]] = {511: [], 1: []}
        for step in [many, *[one] * 8] * 4:
            raw.sequence += 1
            data = frames.encode(msgspec.structs.replace(step, sequence=raw.sequence), rows if step is many else row)
            started = time.process_time()  # of this process, which is the server's too, however busy the machine is
            assert isinstance(raw.ask(data).header, frames.Result)
            taken[step.count].append(time.process_time() - started)
        return [min(times) for times in taken.values()]

    chain, tree = seconds([]), seconds(TREES[shape][:511])
    print(f"{shape}: {tree[0] / chain[0]:.2f} and {tree[1] / chain[1]:.2f} of a chain's time")
    assert tree[0] < 4 * chain[0]
    assert tree[1] < 4 * chain[1]
    raw.transport.close()


# Sessions: opening, resuming, guessing


def test_opening_twice_is_refused_and_keeps_the_first(mallory: Raw, victim: Victim, service: Service) -> None:
    mallory.refused(mallory.open(), RemoteCode.BAD_STEP)
    mallory.refused(mallory.say(frames.Resume(bytes(16), 5, 0)), RemoteCode.BAD_STEP)
    assert len(service.table) == 2
    mallory.still_right()


@pytest.mark.parametrize("header", [frames.Step(1, 0, 1, 0, bytes(8)), frames.Close()], ids=["step", "close"])
def test_nothing_goes_before_open(service: Service, victim: Victim, header: frames.Header) -> None:
    raw = Raw(service)
    payload = encoded(1, 1) if isinstance(header, frames.Step) else b""
    raw.refused(raw.say(header, payload), RemoteCode.BAD_STEP)
    assert isinstance(raw.open(), frames.Opened)
    raw.transport.close()


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"fingerprint": "0" * 32}, RemoteCode.MODEL_MISMATCH),
        ({"fingerprint": "\x1b[2J" * 10}, RemoteCode.MODEL_MISMATCH),
        ({"cut": Cut(1, 4, 6)}, RemoteCode.MODEL_MISMATCH),
        ({"cut": Cut(2, 4, 7)}, RemoteCode.MODEL_MISMATCH),
        ({"protocol": 2}, RemoteCode.BAD_FRAME),
        ({"protocol": 0}, RemoteCode.BAD_FRAME),
        ({"codec": "pickle"}, RemoteCode.BAD_FRAME),
        ({"codec": "../fp32"}, RemoteCode.BAD_FRAME),
        ({"codec": "os:system"}, RemoteCode.BAD_FRAME),
        ({"codec": ""}, RemoteCode.BAD_FRAME),
        ({"max_positions": LIMITS.positions + 1}, RemoteCode.LIMIT),
        ({"max_positions": frames.MAX_POSITIONS}, RemoteCode.LIMIT),
    ],
    ids=str,
)  # fmt: skip
def test_a_session_that_cannot_be_is_not_opened(
    service: Service, victim: Victim, changed: dict[str, Any], code: RemoteCode
) -> None:
    raw = Raw(service)
    answer = raw.open(**changed)
    raw.refused(answer, code)
    assert answer.message.isprintable()
    assert len(service.table) == 1
    assert isinstance(raw.open(), frames.Opened)
    raw.transport.close()


def test_there_are_only_so_many_sessions_and_closing_one_makes_room(service: Service, victim: Victim) -> None:
    attackers = [Raw(service) for _ in range(LIMITS.sessions)]
    answers = [raw.open() for raw in attackers]
    assert [type(answer) for answer in answers[:-1]] == [frames.Opened] * (LIMITS.sessions - 1)
    attackers[-1].refused(answers[-1], RemoteCode.LIMIT)
    victim.step()
    attackers[0].say(frames.Close())
    assert isinstance(attackers[-1].open(), frames.Opened)
    for raw in attackers:
        raw.transport.close()


def test_nobody_resumes_somebody_elses_session(service: Service, victim: Victim) -> None:
    """Even knowing its id; and the answer is that to a session that never was."""
    theirs = victim.remote._session.id
    guess = bytes(reversed(theirs))
    told = []
    for session in (theirs, guess):
        raw = Raw(service)
        answer = raw.say(frames.Resume(session, 0xFFFF_FFFF, 0))
        raw.refused(answer, RemoteCode.UNKNOWN_SESSION)
        told.append(answer)
        raw.transport.close()
    assert told[0] == told[1]


def test_session_ids_cannot_be_guessed(service: Service, victim: Victim) -> None:
    raw = Raw(service, "alice")  # the victim's own identity, so that only the id stands between
    theirs = victim.remote._session.id
    chance = random.Random(3)
    near = [bytes([*theirs[:i], theirs[i] ^ 1, *theirs[i + 1 :]]) for i in range(16)]
    for session in near + [chance.randbytes(16) for _ in range(500)]:
        raw.refused(raw.say(frames.Resume(session, 9, 0)), RemoteCode.UNKNOWN_SESSION)
    raw.transport.close()


def test_a_connection_left_behind_is_fenced_off(service: Service, mallory: Raw, victim: Victim) -> None:
    session = next(held.wire.id for held in service.table._sessions.values() if held.wire.owner == "mallory")
    newer = Raw(service)
    assert newer.say(frames.Resume(session, 7, 4)) == frames.Resumed(7, 4, digest(mallory.rows))
    newer.rows = mallory.rows
    late = Raw(service)
    late.refused(late.say(frames.Resume(session, 6, 4)), RemoteCode.STALE_EPOCH, fatal=True)
    mallory.refused(mallory.step(encoded(1, 2)), RemoteCode.STALE_EPOCH, fatal=True)
    newer.still_right()
    newer.transport.close()


# Frames


@pytest.mark.parametrize(
    "header",
    [
        frames.Opened(bytes(16), 1, 1, 1),
        frames.Resumed(1, 0, bytes(8)),
        frames.Result(1, 0, 1, 0),
        frames.Closed(),
        frames.Failure(RemoteCode.INTERNAL, "\x1b[31mgotcha", True),
    ],
    ids=lambda header: type(header).__name__,
)
def test_what_only_servers_say_ends_the_connection(mallory: Raw, victim: Victim, header: frames.Header) -> None:
    mallory.refused(mallory.say(header), RemoteCode.BAD_FRAME, fatal=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05",
        b"\x00" * 3,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95.",  # a pickle
        b"\x05\xff\xff",
        b"\x05\x05\x00\xdd\xff\xff\xff\xff",
        b"\x05\x00\xf0" + b"\x91" * 0xF000,
        frames.encode(frames.Close()) + b"payload",
        frames.encode(frames.Step(2, 4, 1, 0, bytes(8)), encoded(1, 1))[:10],
    ],
    ids=lambda data: data[:8].hex(),
)
def test_what_is_no_frame_ends_the_connection_and_nothing_else(
    service: Service, mallory: Raw, victim: Victim, data: bytes
) -> None:
    mallory.refused(mallory.ask(data), RemoteCode.BAD_FRAME, fatal=True)
    session = next(held.wire.id for held in service.table._sessions.values() if held.wire.owner == "mallory")
    back = Raw(service)
    assert back.say(frames.Resume(session, 2, 4)) == frames.Resumed(2, 4, digest(mallory.rows))
    back.rows = mallory.rows
    back.still_right()
    back.transport.close()


def test_thousands_of_spoiled_frames_next_to_a_victim(
    service: Service, victim: Victim, spoiled_any_way: Callable[[int, int], Iterator[bytes]]
) -> None:
    """Each attacker opens a session and goes on until a fatal refusal ends the connection, then comes back."""
    raw: Raw | None = None
    answered: dict[str, int] = {}
    for number, data in enumerate(spoiled_any_way(6000, 2)):
        if number % 200 == 0:
            victim.step()
        if raw is None:
            service.table._sessions = {
                key: held for key, held in service.table._sessions.items() if held.wire.owner == "alice"
            }
            raw = Raw(service)
            raw.open()
        header = raw.ask(data).header
        kind = str(header.code) if isinstance(header, frames.Failure) else type(header).__name__
        answered[kind] = answered.get(kind, 0) + 1
        if isinstance(header, frames.Failure) and header.fatal:
            raw.transport.close()
            raw = None
    assert "internal" not in answered, answered
    assert answered["bad_frame"] > 3000
    assert {"bad_step", "limit", "InfoReply", "Closed"} <= set(answered), answered


def nonsense(chance: random.Random, raw: Raw) -> bytes:
    """A well-formed frame whose fields are nearly right, or not at all."""
    held = len(raw.account)
    theirs = chance.choice([bytes(16), chance.randbytes(16), raw.session])
    match chance.randrange(9):
        case 0:
            fingerprint = chance.choice([raw.info.fingerprint, "x"])
            cut = chance.choice([raw.info.cut, Cut(0, 6, 6)])
            codec = chance.choice(["fp32", "fp16", "zip"])
            return frames.encode(
                frames.Open(chance.choice([1, 2]), fingerprint, cut, codec, chance.choice([0, 8, 64, 65]))
            )
        case 1:
            return frames.encode(
                frames.Resume(theirs, chance.choice([0, 1, 2, 3, 1 << 31]), chance.choice([0, held, 1 << 24]))
            )
        case 2:
            return frames.encode(frames.Close() if chance.random() < 0.1 else frames.Info())
        case _:
            base = chance.choice([0, held, held, held + 1, max(0, held - 2)])
            count = chance.choice([1, 1, 2, 8, 9])
            rows = encoded(count, chance.randrange(100))
            if chance.random() < 0.1:
                rows = rows[:-4] + chance.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b""])
            sequence = (raw.sequence + chance.choice([1, 1, 1, 0, 2, 65535])) % frames.SEQUENCES
            path = chance.choice([[]] * 5 + [[0], [1], [0, 2], [0, 1, 3], [255], [*range(9)]])
            if held and chance.random() < 0.5:  # a right one
                trunk, branch = raw.account.tree.path(chance.randrange(held))
                base, path = trunk + len(branch), [slot - trunk for slot in branch]
            backs = [min(chance.choice([1, 1, 2, 3]), base + i + 1) for i in range(count)]
            parents = chance.choice([b"", b"", bytes(backs), bytes(backs), bytes(backs[:-1]), bytes(count)])
            try:
                prefix = chance.choice([raw.account.after(base - len(path), path)] * 4 + [bytes(8)])
            except ProtocolError:
                prefix = bytes(8)
            flags = chance.choice([0, 0, 1])
            kept = bitmap(path, max([held - base + len(path), *(row + 1 for row in path)]))
            return frames.encode(frames.Step(sequence, base, count, flags, prefix, kept, parents), rows)


def test_thousands_of_well_formed_frames_that_make_no_sense(service: Service, victim: Victim) -> None:
    """The attacker keeps account of its own session, and at the end the server agrees with it."""
    chance = random.Random(4)
    answered: dict[str, int] = {}
    branched = moved = 0
    raw = Raw(service)
    raw.session, raw.account = raw.open().session, PrefixDigests()
    for number in range(4000):
        if number % 200 == 0:
            victim.step()
        data = nonsense(chance, raw)
        sent = frames.decode(data)
        header = raw.ask(data).header
        kind = str(header.code) if isinstance(header, frames.Failure) else type(header).__name__
        answered[kind] = answered.get(kind, 0) + 1
        if isinstance(header, frames.Result):
            raw.sequence = header.sequence
            raw.account.keep(sent.header.anchor, sent.header.path)
            raw.account.extend(sent.payload, ROW, sent.header.parents)
            branched += bool(sent.header.parents)
            moved += sent.header.path != [*range(len(sent.header.path))]
        elif isinstance(header, frames.Failure) and header.code is RemoteCode.NON_FINITE and "output" in header.message:
            raw.account.keep(sent.header.anchor)  # the model ran: the session is where the step began
        elif isinstance(header, frames.Opened):
            raw.session, raw.sequence, raw.account = header.session, 0, PrefixDigests()
        elif isinstance(header, frames.Resumed):
            raw.sequence = 0
        elif isinstance(header, frames.Closed) or (isinstance(header, frames.Failure) and header.fatal):
            if not isinstance(header, frames.Closed):
                raw.transport.close()
                raw = Raw(service)
            raw.session, raw.account, raw.sequence = bytes(16), PrefixDigests(), 0
    assert "internal" not in answered, answered
    assert {
        "bad_frame", "bad_step", "limit", "model_mismatch", "non_finite", "prefix_mismatch", "unknown_session",
        "Closed", "InfoReply", "Opened", "Result",
    } <= set(answered), answered  # fmt: skip
    assert branched > 20
    assert moved > 5
    held = service.table.find(raw.session, "mallory")
    assert held.wire._digests.at(held.wire.position) == raw.account.at(len(raw.account))
    assert held.cache.position >= held.wire.position


def test_many_attackers_at_once(
    service: Service, victim: Victim, spoiled_any_way: Callable[[int, int], Iterator[bytes]]
) -> None:
    """Frames sent without waiting for answers, from several connections, while the victim decodes."""
    done = threading.Event()

    def attack(seed: int) -> None:
        for data in spoiled_any_way(300, seed):
            transport = service.local.connect("mallory")
            try:
                for _ in range(5):
                    transport.send(data)
                transport.break_connection()
            except ConnectionLostError:
                pass
        done.set()

    threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        victim.step()
    for thread in threads:
        thread.join()
    assert done.is_set()


def test_errors_tell_nothing_about_the_server(
    mallory: Raw, victim: Victim, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/srv/models/secret.safetensors: CUDA error at 0xdeadbeef")

    monkeypatch.setattr(service.engine, "run", broken)
    answer = mallory.step(encoded(1, 2))
    monkeypatch.undo()
    mallory.refused(answer, RemoteCode.INTERNAL)
    assert "secret" not in answer.header.message
    mallory.still_right()


def test_the_decoder_is_the_same_for_memory_and_views() -> None:
    with pytest.raises(FrameError):
        frames.decode(memoryview(b"\x05\x00"))
