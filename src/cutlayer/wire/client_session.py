"""The client's half of the session protocol, without sockets.

Methods return bytes to send; `receive` takes bytes that arrived. The session keeps every row it sent (encoded, so a
replay sends the very same bytes, noise included) and can therefore continue on a server that lost everything.

    session = ClientSession(row_bytes)
    transport.send(session.open(...));      session.receive(transport.recv())      # OPENED
    transport.send(session.step(0, rows));  session.receive(transport.recv())      # RESULT
    # the connection breaks:
    transport.send(session.resume());       session.receive(...)                   # RESUMED, or ERROR unknown_session
    for again in session.replay(max_bytes): transport.send(again.frame); session.receive(...)
    # an answer was refused, or nobody waits for it any more:
    session.abandon()                                                              # then resume as above
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cutlayer.errors import ProtocolError, RemoteError
from cutlayer.tree import check_backs
from cutlayer.wire import frames
from cutlayer.wire.bitmap import bitmap
from cutlayer.wire.frames import NO_REPLY, Kind
from cutlayer.wire.prefix import PrefixDigests

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cutlayer.types import Cut


class Output(NamedTuple):
    """What a step brought back."""

    base: int
    positions: int
    payload: memoryview
    compute_us: int


class _Pending(NamedTuple):
    """A step that was sent."""

    step: frames.Step
    wanted: bool = True
    """Whether its rows still stand; the answer comes either way."""


class Replayed(NamedTuple):
    """A frame sent again."""

    frame: bytes
    silent: bool
    """Its answer brings no hidden states."""


class ClientSession:
    """One session as the client sees it.

    Args:
        row_bytes: encoded bytes per position.
    """

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.id: bytes | None = None
        self.epoch = 0
        self.max_positions = 0
        self.max_step_positions = 1
        self.sent = 0
        """Positions the client has sent and not rolled back."""
        self._rows = bytearray()
        self._digests = PrefixDigests()
        self._sequence = 0  # counts afresh in every epoch, on both sides
        self._pending: deque[_Pending] = deque()
        self._agreed = 0
        """Positions on which both sides agree, whichever of the steps under way arrived."""
        self._asked: type[frames.Header] | None = None
        """The only answer that has a place now, if it is not a RESULT."""
        self._resume_from = 0

    @property
    def outstanding(self) -> int:
        """Steps sent and not yet answered whose answers are wanted."""
        return sum(pending.wanted for pending in self._pending)

    def open(self, fingerprint: str, cut: Cut, codec: str, max_positions: int = 0) -> bytes:
        """Ask for a new session. Rows already sent are kept for `replay`."""
        self.forget_server()
        self._asked = frames.Opened
        return frames.encode(frames.Open(frames.PROTOCOL, fingerprint, cut, codec, max_positions))

    def forget_server(self) -> None:
        """Give up the server's half: from here only `open` leads on."""
        self.id = None
        self._resume_from = self._agreed = 0

    def resume(self) -> bytes:
        """Ask to continue this session on a new connection.

        Every attempt takes an epoch of its own. If the answer to one is lost, the server is ahead, and the next attempt
        must not look like an old one to it.

        Raises:
            ProtocolError: it was never opened.
        """
        if self.id is None:
            raise ProtocolError("cannot resume a session that was never opened")
        self.epoch += 1
        self._asked = frames.Resumed
        return frames.encode(frames.Resume(self.id, self.epoch, self._agreed))

    def step(self, base: int, rows: bytes, path: Sequence[int] = (), parents: Sequence[int] = ()) -> bytes:
        """Send `rows` as the positions from `base` on, rolling back to `base` first if it lies behind.

        Answers to earlier steps that are rolled back are dropped when they come.

        Args:
            base: first of the positions.
            rows: encoded hidden states.
            path: which of the rows sent last to keep before; see `Tree.keep`. They end at `base`.
            parents: what each row follows; see `Tree.extend`.

        Raises:
            ProtocolError: `base` lies beyond what was sent, the rows exceed a limit, or there is no such path or parent.
        """
        count, rest = divmod(len(rows), self.row_bytes)
        if rest or not 1 <= count <= self.max_step_positions:
            raise ProtocolError(f"a step takes 1 to {self.max_step_positions} whole rows, not {len(rows)} bytes")
        if base + count > self.max_positions:
            raise ProtocolError(
                f"position {base + count} exceeds the session's {self.max_positions}; shorten the prompt or the answer, "
                "or raise the server's --max-positions"
            )
        tree = self._digests.tree
        anchor = base - len(path)
        tree.check_path(anchor, path)
        check_backs(count, parents, base, tree.trunk_after(anchor, path))
        kept = self._bitmap(anchor, path)
        self._drop(anchor)
        self._keep(anchor, path)
        step = self._next_step(base, count, flags=0, kept=kept, parents=bytes(parents))
        self._rows += rows
        self._digests.extend(rows, self.row_bytes, parents)
        self.sent = base + count
        self._agreed = min(self._agreed, anchor)
        self._pending.append(_Pending(step))
        return frames.encode(step, rows)

    def abandon(self) -> None:
        """Forget the unanswered steps and their rows. Answers may still be on their way, so a resume must follow."""
        self._keep(self._settled)
        self._pending.clear()

    def close(self) -> bytes:
        """Ask the server to forget the session; answers to steps under way may still come before it says so."""
        self._asked = frames.Closed
        return frames.encode(frames.Close())

    def receive(self, data: bytes) -> Output | None:
        """Take one frame from the server.

        Returns:
            The output of the oldest outstanding step, or None for any other frame, and where nobody waits for it any more.

        Raises:
            FrameError: malformed.
            RemoteError: the server refused.
            ProtocolError: the frame has no place here.
        """
        header, payload = _unpack(data)
        due = self._asked or frames.Result
        if due is frames.Closed and isinstance(header, frames.Result):
            return None  # of a step that was under way when the session was closed
        if type(header) is not due:
            raise ProtocolError(f"the server sent {type(header).__name__} where {due.__name__} was due")
        self._asked = None
        match header:
            case frames.Result():
                return self._result(header, payload)
            case frames.Opened():
                self.id, self.epoch = header.session, header.epoch
                self.max_positions, self.max_step_positions = header.max_positions, header.max_step_positions
                self._sequence = 0
            case frames.Resumed():
                if header.epoch != self.epoch:
                    raise ProtocolError(f"the server resumed at epoch {header.epoch} where {self.epoch} was asked for")
                self._sequence = 0
                known = header.position <= self._agreed and self._digests.at(header.position) == header.digest
                self._resume_from = header.position if known else 0
            case frames.Closed():
                self.id = None
        return None

    def replay(self, max_bytes: int) -> Iterator[Replayed]:
        """Frames that bring the server back to where this side believes it is; one answer arrives for each, in order.

        Rows the server lacks go without reply; steps whose results never arrived go again with reply, split as before.
        If the connection breaks again in the middle, resume and call this anew.

        Args:
            max_bytes: rows per replayed frame are limited to this many bytes.
        """
        unanswered, target = self._unanswered, self._settled
        per_frame = max(1, min(self.max_step_positions, max_bytes // self.row_bytes))
        first = min(self._resume_from, target)
        again = [_Pending(step) for step in self._pieces(first, target, per_frame, NO_REPLY)]
        held = target
        for step in unanswered:
            # Rows kept of a step nobody waits for any more may lie between two that somebody waits for. Their answers come
            # among the others', so they are none of the silent ones.
            again += [_Pending(piece, wanted=False) for piece in self._pieces(held, step.base, per_frame, flags=0)]
            again += [_Pending(self._next_step(step.base, step.count, flags=0))]
            held = step.base + step.count
        # Set before the first frame leaves: whatever happens while sending, no unanswered step is forgotten.
        self._pending = deque(again)
        self._agreed = first
        rows = memoryview(bytes(self._rows))
        for step, _ in again:
            sent = rows[step.base * self.row_bytes : (step.base + step.count) * self.row_bytes]
            yield Replayed(frames.encode(step, sent), bool(step.flags & NO_REPLY))

    def _pieces(self, start: int, stop: int, per_frame: int, flags: int) -> list[frames.Step]:
        """Steps that send the rows [start, stop) again."""
        return [self._next_step(base, min(per_frame, stop - base), flags) for base in range(start, stop, per_frame)]

    @property
    def _unanswered(self) -> list[frames.Step]:
        return [pending.step for pending in self._pending if pending.wanted and not pending.step.flags & NO_REPLY]

    @property
    def _settled(self) -> int:
        """Positions whose outputs were received; the unanswered steps begin here."""
        unanswered = self._unanswered
        return unanswered[0].base if unanswered else self.sent

    def _drop(self, position: int) -> None:
        """Nobody waits any more for the answers to steps from `position` on.

        Raises:
            ProtocolError: it lies within an unanswered step.
        """
        for step in self._unanswered:
            if step.base < position < step.base + step.count:
                raise ProtocolError(f"cannot roll back to {position}, within the unanswered step from {step.base}")
        self._pending = deque(
            _Pending(step, wanted and (step.base < position or bool(step.flags & NO_REPLY)))
            for step, wanted in self._pending
        )

    def _bitmap(self, anchor: int, path: Sequence[int]) -> bytes:
        """A path as a step names it: with a bit for every row it might have led through, so that its length tells no more than
        how many those were.

        Raises:
            ProtocolError: they are more than a step can name.
        """
        rows = self.sent - anchor if path else 0
        if rows > frames.MAX_STEP_POSITIONS:
            raise ProtocolError(
                f"cannot keep a path among the {rows} rows from position {anchor} on, {frames.MAX_STEP_POSITIONS} at most; "
                "begin it where they branch"
            )
        return bitmap(path, rows)

    def _keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        size = self.row_bytes
        rows = [self._rows[(anchor + distance) * size : (anchor + distance + 1) * size] for distance in path]
        self._rows[anchor * size :] = b"".join(rows)
        self._digests.keep(anchor, path)
        self.sent = anchor + len(path)

    def _next_step(
        self, base: int, count: int, flags: int, kept: bytes = b"", parents: bytes | None = None
    ) -> frames.Step:
        """The next step, of rows held already if no parents are given."""
        self._sequence = (self._sequence + 1) % frames.SEQUENCES
        if parents is None:
            parents = self._digests.tree.backs(base, base + count)
        return frames.Step(self._sequence, base, count, flags, self._digests.at(base), kept, parents)

    def _result(self, header: frames.Result, payload: memoryview) -> Output | None:
        if not self._pending:
            raise ProtocolError("the server answered a step that was never sent")
        step, wanted = self._pending[0]
        if (header.sequence, header.base, header.count) != (step.sequence, step.base, step.count):
            raise ProtocolError(
                f"the server answered step {header.sequence} ({header.base}+{header.count}) "
                f"where step {step.sequence} ({step.base}+{step.count}) was due"
            )
        due = 0 if step.flags & NO_REPLY else step.count * self.row_bytes
        if len(payload) != due:
            raise ProtocolError(f"the server returned {len(payload)} bytes for a step that takes {due}")
        self._pending.popleft()
        self._agreed = min((pending.step.anchor for pending in self._pending), default=self.sent)
        return Output(header.base, header.count, payload, header.compute_us) if wanted else None


def _unpack(data: bytes) -> tuple[frames.Header, memoryview]:
    """Decode, turning an ERROR frame into the exception it stands for."""
    frame = frames.decode(data)
    if isinstance(frame.header, frames.Failure):
        raise RemoteError(frame.header.code, frame.header.message)
    return frame.header, frame.payload


def expect_info(data: bytes) -> frames.InfoReply:
    """Decode the answer to an INFO frame.

    Raises:
        RemoteError: the server refused.
        ProtocolError: it is something else.
    """
    header, _ = _unpack(data)
    if not isinstance(header, frames.InfoReply):
        raise ProtocolError(f"expected {Kind.INFO_REPLY.name}, got {type(header).__name__}")
    return header
