"""Client and server halves of a session against a network that loses what it likes, and a server that forgets.

The machine below plays both ends and the wire between them. Frames wait in queues; connections break with frames in either
direction undelivered, frames of dead connections reach the server late, sessions vanish from its table, and the client rolls
back or gives up steps. Whatever happens: every step's result is given out exactly once, in order, computed from exactly
the rows the client means, and once things calm down the server holds those rows and no others.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutlayer.errors import RefusedError, RemoteCode, RemoteError
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession
from cutlayer.wire.server_session import ServerSession, refusal

ROW = 4
MAX_POSITIONS = 24
MAX_STEP = 5
CURABLE = {RemoteCode.UNKNOWN_SESSION, RemoteCode.STALE_EPOCH}
"""What a client meets here by opening anew."""


class Bytes:
    """A codec whose rows are bytes already."""

    name = "bytes"

    def row_bytes(self, hidden_size: int) -> int:
        return hidden_size


def outputs(rows: list[bytes], base: int) -> bytes:
    """What a model does: each output depends on every row up to its own."""
    return b"".join(blake2b(b"".join(rows[: i + 1]), digest_size=ROW).digest() for i in range(base, len(rows)))


class Held(NamedTuple):
    """A session on the server, and the rows of its cache."""

    wire: ServerSession
    rows: list[bytes]


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

    def serve(self, link: Link) -> None:
        """Answer the next frame of a link."""
        frame = frames.decode(link.up.popleft())
        try:
            link.down.append(self._answer(link, frame.header, frame.payload))
        except RefusedError as error:
            link.down.append(refusal(error))

    def _answer(self, link: Link, header: frames.Header, payload: memoryview) -> bytes:
        if isinstance(header, frames.Open):
            link.held = Held(ServerSession("me", Bytes(), ROW, MAX_POSITIONS, MAX_STEP), [])
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
        held.rows[header.base :] = [bytes(payload[i : i + ROW]) for i in range(0, len(payload), ROW)]
        held.wire.commit(header, payload)
        silent = header.flags & frames.NO_REPLY
        result = frames.Result(header.sequence, header.base, header.count, 0)
        return frames.encode(result, b"" if silent else outputs(held.rows, header.base))


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
        self.rows: list[bytes] = []
        """What the client means, by the test's own account."""
        self.due: deque[tuple[int, bytes]] = deque()
        """Base and outputs of the steps whose results the client has not had yet."""
        self.fresh = 0
        self.link.up.append(self.client.open("f", Cut(0, 1, 1), "bytes"))
        self.settle()

    # The client

    @precondition(lambda self: self.link is not None and self.settled)
    @rule(back=st.integers(0, 6), count=st.integers(1, MAX_STEP))
    def step(self, back: int, count: int) -> None:
        base = len(self.rows) if self.client.outstanding else max(0, len(self.rows) - back)
        if base + count > MAX_POSITIONS:
            return
        self.fresh += 1
        new = [self.fresh.to_bytes(3, "little") + bytes([i]) for i in range(count)]
        self.rows[base:] = new
        self.due.append((base, outputs(self.rows, base)))
        self.link.up.append(self.client.step(base, b"".join(new)))

    @precondition(lambda self: self.link is not None and self.link.down)
    @rule()
    def take(self) -> None:
        """The client takes the next frame that has arrived."""
        try:
            output = self.client.receive(self.link.down.popleft())
        except RemoteError as error:
            if error.code not in CURABLE:
                raise
            self.client.forget_server()
            self.lose()
            return
        if not self.settled:
            assert output is None
            self.settled = True
            for frame, _ in self.client.replay(max_bytes=3 * ROW):
                self.link.up.append(frame)
        elif output.payload:
            assert (output.base, bytes(output.payload)) == self.due.popleft()

    @precondition(lambda self: self.link is None)
    @rule()
    def reconnect(self) -> None:
        self.link, self.settled = Link(), False
        unopened = self.client.id is None
        self.link.up.append(self.client.open("f", Cut(0, 1, 1), "bytes") if unopened else self.client.resume())

    @rule()
    def abandon(self) -> None:
        """Nobody waits for the outstanding steps any more."""
        self.client.abandon()
        if self.due:
            del self.rows[self.due[0][0] :]
            self.due.clear()
        if self.link is not None:
            self.lose()

    # The network

    @precondition(lambda self: self.link is not None)
    @rule()
    def lose(self) -> None:
        """The connection breaks; what was on its way down is lost, what was on its way up may still arrive."""
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

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """A session expires."""
        if self.host.table:
            del self.host.table[data.draw(st.sampled_from(sorted(self.host.table)))]

    @rule()
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
        for _ in range(1000):
            if self.link is None:
                self.reconnect()
            elif self.link.up:
                self.serve()
            elif self.link.down:
                self.take()
            else:
                break
        assert not self.due
        assert self.client.outstanding == 0
        assert self.settled
        held = self.link.held
        # The server may hold more than the client means: the next step rolls that back.
        assert held.rows[: len(self.rows)] == self.rows
        assert held.wire.position == len(held.rows)

    @invariant()
    def both_count_the_same_rows(self) -> None:
        assert self.client.sent == len(self.rows)

    def teardown(self) -> None:
        if hasattr(self, "host"):
            self.settle()
            # One more step shows that what the server holds beyond the client's rows is gone from the outputs.
            if len(self.rows) < MAX_POSITIONS:
                self.step(0, 1)
                self.settle()
                assert self.link.held.rows == self.rows


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
