"""Client and server halves of a session against a network that loses what it likes, and a server that forgets.

The machine below plays both ends and the wire between them. Steps branch, go on from guesses whose answers are still under way,
keep a path or roll back while answers are due. Frames wait in queues; connections break with frames in either direction
undelivered, frames of dead connections reach the server late, sessions vanish from its table, steps fail in the model, and the
client gives up what it asked. Whatever happens: the result of every step that still stands is given out exactly once, in order,
computed from exactly the rows on each row's path; a resume sends again no more than what was under way; and once things calm
down the server holds the client's rows, each after the one the client means.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutlayer.errors import ProtocolError, RefusedError, RemoteCode, RemoteError
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession
from cutlayer.wire.server_session import ServerSession, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROW = 4
MAX_POSITIONS = 30
MAX_STEP = 5
PER_FRAME = 3
"""Rows of a replayed frame."""
CURABLE = {RemoteCode.UNKNOWN_SESSION, RemoteCode.STALE_EPOCH}
"""What a client meets here by opening anew."""


class Bytes:
    """A codec whose rows are bytes already."""

    name = "bytes"

    def row_bytes(self, hidden_size: int) -> int:
        return hidden_size


class Slots:
    """Rows and what each follows, kept the plain way: on both sides of the test."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.parents: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, slot: int) -> list[int]:
        """The slots up to `slot`."""
        return [*(self.path(self.parents[slot]) if self.parents[slot] >= 0 else ()), slot]

    def trunk(self) -> int:
        """How many of the first slots follow one another."""
        return next((slot for slot, parent in enumerate(self.parents) if parent != slot - 1), len(self))

    def keep(self, anchor: int, path: Sequence[int]) -> None:
        self.rows[anchor:] = [self.rows[anchor + distance] for distance in path]
        self.parents[anchor:] = range(anchor - 1, anchor + len(path) - 1)

    def extend(self, rows: Sequence[bytes], backs: Sequence[int]) -> None:
        for row, back in zip(rows, backs or [1] * len(rows), strict=True):
            self.parents.append(len(self.rows) - back)
            self.rows.append(row)

    def outputs(self, base: int) -> bytes:
        """What a model does: each output depends on every row on its own path."""
        return b"".join(
            blake2b(b"".join(self.rows[i] for i in self.path(slot)), digest_size=ROW).digest()
            for slot in range(base, len(self))
        )

    def first(self, count: int) -> tuple[list[bytes], list[int]]:
        return self.rows[:count], self.parents[:count]


class Held(NamedTuple):
    """A session on the server, and its cache."""

    wire: ServerSession
    cache: Slots


class Link:
    """One connection: what travels up and down, and the server's memory of it."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.held: Held | None = None
        self.epoch = 0


class Host:
    """The server: its table, and the service's rules in a few lines."""

    def __init__(self) -> None:
        self.table: dict[bytes, Held] = {}

    def serve(self, link: Link, run: int | None = None) -> None:
        """Answer the next frame of a link; of a step's rows the model runs only `run` before it fails."""
        frame = frames.decode(link.up.popleft())
        try:
            link.down.append(self._answer(link, frame.header, frame.payload, run))
        except RefusedError as error:
            link.down.append(refusal(error))

    def _answer(self, link: Link, header: frames.Header, payload: memoryview, run: int | None) -> bytes:
        if isinstance(header, frames.Open):
            link.held = Held(ServerSession("me", Bytes(), ROW, MAX_POSITIONS, MAX_STEP), Slots())
            link.epoch = link.held.wire.epoch
            self.table[link.held.wire.id] = link.held
            return link.held.wire.opened()
        if isinstance(header, frames.Resume):
            held = self.table.get(header.session)
            if held is None:
                raise RefusedError(RemoteCode.UNKNOWN_SESSION, "gone")
            answer = held.wire.resumed(header)
            link.held, link.epoch = held, held.wire.epoch
            return answer
        assert isinstance(header, frames.Step)
        held = link.held
        if held is None or self.table.get(held.wire.id) is not held:
            raise RefusedError(RemoteCode.UNKNOWN_SESSION, "gone")
        if held.wire.epoch != link.epoch:
            raise RefusedError(RemoteCode.STALE_EPOCH, "resumed elsewhere")
        held.wire.accept(header, payload)
        rows = [bytes(payload[i : i + ROW]) for i in range(0, len(payload), ROW)][:run]
        held.cache.keep(header.anchor, header.path)
        held.cache.extend(rows, header.parents[:run])
        if run is not None:
            held.wire.forget_from(header.anchor)
            raise RefusedError(RemoteCode.INTERNAL, "the model failed")
        held.wire.commit(header, payload)
        silent = header.flags & frames.NO_REPLY
        result = frames.Result(header.sequence, header.base, header.count, 0)
        return frames.encode(result, b"" if silent else held.cache.outputs(header.base))


class Due(NamedTuple):
    """A step whose result the client has not had yet."""

    base: int
    count: int
    outputs: bytes


class Move(NamedTuple):
    """A step of the client."""

    kept: float | None
    """Which slot's path is kept, as a share of those held; None to roll back only."""
    back: int
    """How many slots to roll back, or how many that need not move the path names all the same."""
    backs: list[int]
    count: int
    """Rows, if `backs` says nothing."""


MOVES = st.builds(
    Move,
    st.none() | st.floats(0, 1),
    st.sampled_from([0, 0, 0, 1, 2, 4]),
    st.just([]) | st.lists(st.sampled_from([1, 1, 2, 3, 6]), min_size=1, max_size=MAX_STEP),
    st.integers(1, MAX_STEP),
)


class Pair(RuleBasedStateMachine):
    """See the module's docstring."""

    @initialize()
    def start(self) -> None:
        self.host = Host()
        self.client = ClientSession(ROW)
        self.link: Link | None = Link()
        self.dead: list[Link] = []
        self.settled = False
        """Whether this link's OPEN or RESUME was answered, so that steps may follow."""
        self.mine = Slots()
        """What the client means, by the test's own account."""
        self.due: deque[Due] = deque()
        self.anchors: deque[int] = deque()
        """Of the steps of this link that were not answered, wanted or not."""
        self.untouched = 0
        """Slots no step has touched that was under way when a connection broke."""
        self.fresh = 0
        self.link.up.append(self.client.open("f", Cut(0, 1, 1), "bytes"))
        self.settle()

    # The client

    @precondition(lambda self: self.link is not None and self.settled)
    @rule(moves=st.lists(MOVES, min_size=1, max_size=4))
    def steps(self, moves: list[Move]) -> None:
        """Several before an answer is looked at."""
        for move in moves:
            if move.kept is None:
                self._step(max(0, len(self.mine) - move.back), [], move.backs, move.count)
            elif len(self.mine):
                path = self.mine.path(round(move.kept * (len(self.mine) - 1)))
                straight = next((i for i, slot in enumerate(path) if slot != i), len(path))
                anchor = max(0, straight - move.back)
                self._step(anchor, [slot - anchor for slot in path[anchor:]], move.backs, move.count)

    def _step(self, anchor: int, path: list[int], backs: list[int], count: int) -> None:
        base = anchor + len(path)
        backs = [min(back, base + i + 1) for i, back in enumerate(backs)]
        self.fresh += 1
        new = [self.fresh.to_bytes(3, "little") + bytes([i]) for i in range(len(backs) or count)]
        if base + len(new) > MAX_POSITIONS:
            return
        arguments = (base, b"".join(new), bytes(path), bytes(backs))
        if any(due.base < anchor < due.base + due.count for due in self.due):
            with pytest.raises(ProtocolError, match="within the unanswered step"):
                self.client.step(*arguments)
            return
        self.mine.keep(anchor, path)
        self.mine.extend(new, backs)
        while self.due and self.due[-1].base >= anchor:
            self.due.pop()
        self.due.append(Due(base, len(new), self.mine.outputs(base)))
        self.anchors.append(anchor)
        self.link.up.append(self.client.step(*arguments))

    @precondition(lambda self: self.link is not None and self.link.down)
    @rule()
    def take(self) -> None:
        """The client takes the next frame that has arrived."""
        data = self.link.down.popleft()
        try:
            output = self.client.receive(data)
        except RemoteError as error:
            if error.code is RemoteCode.INTERNAL:
                self.abandon()
                return
            if error.code not in CURABLE:
                raise
            self.client.forget_server()
            self.lose()
            return
        if not self.settled:
            assert output is None
            self.settled = True
            self._replay(frames.decode(data).header)
            return
        self.anchors.popleft()
        if output is not None and output.payload:
            due = self.due.popleft()
            assert (output.base, output.positions, bytes(output.payload)) == due

    def _replay(self, answer: frames.Header) -> None:
        """Send what the server lacks: all of it, and nothing that was agreed on."""
        again = [frames.decode(frame).header for frame in self._queue_replay()]
        resumed = isinstance(answer, frames.Resumed)
        agreed = min(self.untouched, self.link.held.cache.trunk(), self.link.held.wire.position) if resumed else 0
        assert sum(step.count for step in again) == len(self.mine) - (again[0].base if again else len(self.mine))
        if again:
            assert again[0].base >= min(agreed, self.due[0].base if self.due else len(self.mine))
        self.anchors = deque(step.base for step in again)

    def _queue_replay(self) -> Iterator[bytes]:
        for frame, _ in self.client.replay(max_bytes=PER_FRAME * ROW):
            self.link.up.append(frame)
            yield frame

    def reconnect(self) -> None:
        self.link, self.settled = Link(), False
        unopened = self.client.id is None
        self.link.up.append(self.client.open("f", Cut(0, 1, 1), "bytes") if unopened else self.client.resume())

    def abandon(self) -> None:
        """Nobody waits for the outstanding steps any more."""
        self.client.abandon()
        if self.due:
            self.mine.keep(self.due[0].base, ())
            self.due.clear()
        if self.link is not None:
            self.lose()

    # The network

    @rule(count=st.integers(1, 8))
    def go_on(self, count: int) -> None:
        """Things work for a while."""
        for _ in range(count):
            if self.link is None:
                self.reconnect()
            elif self.link.up:
                self.serve()
            elif self.link.down:
                self.take()

    @rule(mishap=st.sampled_from(["lose", "lose", "lose", "abandon", "forget", "restart"]))
    def mishap(self, mishap: str) -> None:
        """Few of the rules, or hardly a conversation would get far."""
        if self.link is not None or mishap != "lose":
            getattr(self, mishap)()

    def lose(self) -> None:
        """The connection breaks; what was on its way down is lost, what was on its way up may still arrive."""
        if self.settled:
            self.untouched = min(self.anchors, default=len(self.mine))
            self.anchors.clear()
        self.dead.append(self.link)
        self.link = None

    @precondition(lambda self: any(link.up for link in self.dead))
    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject) -> None:
        self.host.serve(data.draw(st.sampled_from([link for link in self.dead if link.up])))

    # The server

    @precondition(lambda self: self.link is not None and self.link.up)
    @rule()
    def serve(self) -> None:
        self.host.serve(self.link)

    @precondition(lambda self: self.link is not None and self.link.up)
    @rule(run=st.integers(0, MAX_STEP))
    def fail(self, run: int) -> None:
        """The model fails on the next step, somewhere in its rows."""
        self.host.serve(self.link, run)

    def forget(self) -> None:
        """The session expires."""
        self.host.table.pop(self.client.id, None)

    def restart(self) -> None:
        """Connections break and every session is gone."""
        self.host.table.clear()
        for link in self.dead:
            link.up.clear()
        if self.link is not None:
            self.link.up.clear()
            self.lose()

    # What must hold

    @rule()
    def settle(self) -> None:
        """Without further mishaps everything arrives, and both sides hold the same rows."""
        self.go_on(1000)
        assert not self.due
        assert self.client.outstanding == 0
        assert self.settled
        held = self.link.held
        # The server may hold more than the client means: the next step rolls that back.
        assert held.cache.first(len(self.mine)) == self.mine.first(len(self.mine))
        assert len(self.mine) <= held.wire.position <= len(held.cache)

    @invariant()
    def both_count_the_same_rows(self) -> None:
        assert self.client.sent == len(self.mine)

    @invariant()
    def as_many_answers_are_due(self) -> None:
        if self.link is None or self.settled:
            silent = sum(bool(pending.step.flags) for pending in self.client._pending)
            assert self.client.outstanding == len(self.due) + silent

    def teardown(self) -> None:
        if hasattr(self, "host"):
            self.settle()
            # One more step shows that what the server holds beyond the client's rows is gone from the outputs.
            if len(self.mine) < MAX_POSITIONS:
                self._step(len(self.mine), [], [], 1)
                self.settle()
                assert vars(self.link.held.cache) == vars(self.mine)


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
