"""The decode loop's one step: token ids → head → defence → server → tail → logits.

    decoder = Decoder(parts, remote, defence)
    logits = decoder.extend(prompt_ids)          # prefill, in overlapping chunks
    decoder.verify(next_id, draft, first)        # a token and guesses at those after it: one round trip
    logits = decoder.logits(row)                 # after the token (row 0) or after a guess
    decoder.keep([0, …])                         # the rows that turned out right; the others are forgotten
    decoder.rollback(position)

Between a `keep` and the next `verify` the three caches (head's, server's, tail's) cover the same positions, and `ids` are the
tokens at them.

Notation: T tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.client.speculation.speculator import States, Verified
from cutlayer.defences.positions import History
from cutlayer.errors import CancelledError, InputError, ProtocolError
from cutlayer.prefix import common_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cutlayer.client.remote import RemoteBody
    from cutlayer.client.speculation.draft import Draft
    from cutlayer.defences.defence import Defence
    from cutlayer.models.parts import ClientParts

PREFILL_CHUNK: Final = 128
"""Positions per prefill frame: long enough to use the matrix units, short enough to overlap with the network."""
_IN_FLIGHT: Final = 4
"""Prefill chunks sent ahead of the one being awaited."""


class StepTiming(NamedTuple):
    """Where the time of one `extend` went, in seconds."""

    total: float
    client: float
    """In head, defence and tail."""
    server: float
    """In the body, as the server reports it."""
    rows: int
    """Tokens, guesses included, that were waited for."""
    sent: int
    """Tokens, guesses included."""


class _Sent(NamedTuple):
    """Rows under way."""

    base: int
    ids: Sequence[int]
    backs: Sequence[int]
    leaving: torch.Tensor
    """[T, D], before any defence."""


class _Arrived(NamedTuple):
    """Rows that are back."""

    first: int
    """Row of the trip."""
    logits: torch.Tensor
    """[T, V]"""
    states: States


class _Trip:
    """A token and guesses on their way and back.

    Args:
        base: position of the token.
        tokens: [T]
        parents: [T], rows that rows follow.
        cancelled: asked while a lost server is away.
    """

    def __init__(self, base: int, tokens: Sequence[int], parents: Sequence[int], cancelled: Callable[[], bool]) -> None:
        self.base = base
        self.tokens = tokens
        self.parents = parents
        self.cancelled = cancelled
        self.under_way: deque[_Sent] = deque()
        self.arrived: list[_Arrived] = []

    @property
    def rows(self) -> int:
        """How many are back."""
        return sum(len(part.logits) for part in self.arrived)

    def shown(self, kept: Sequence[int]) -> Verified:
        """The rows that are back."""
        return Verified(
            self.base,
            self.tokens[: self.rows],
            self.parents[: self.rows],
            _joined([part.logits for part in self.arrived]),
            kept,
            States(
                _joined([part.states.leaving for part in self.arrived]),
                _joined([part.states.returned for part in self.arrived]),
            ),
        )


class Decoder:
    """One conversation's caches and its session.

    Args:
        parts: head and tail.
        remote: open session of the same cut.
        defence: applied to every hidden state before it leaves.
        turn: held during a forward pass, where decoders share `parts`.
    """

    def __init__(
        self, parts: ClientParts, remote: RemoteBody, defence: Defence, turn: threading.Lock | None = None
    ) -> None:
        self.ids: list[int] = []
        self.released = 0
        """Positions that have left so far, those that left again after a rollback included."""
        self._turn = turn or threading.Lock()
        self.last_timing = StepTiming(0.0, 0.0, 0.0, 0, 0)
        self._parts = parts
        self._remote = remote
        self._defence = defence
        self._history = History()
        self._trip: _Trip | None = None
        """Rows that are being verified: neither kept nor forgotten yet."""
        self._head_cache = parts.head.new_cache()
        self._tail_cache = parts.tail.new_cache()
        self._device = parts.head.embedding().device
        self._vocabulary = parts.head.embedding().shape[0]
        self._dtype = parts.head.embedding().dtype

    @property
    def capacity(self) -> int:
        """Positions the session may hold."""
        return self._remote.max_positions

    @property
    def widest(self) -> int:
        """Tokens and guesses that may be verified at once."""
        return self._remote.max_step_positions

    @property
    def room(self) -> int:
        """Positions the session can still take."""
        return self._remote.max_positions - len(self.ids)

    def extend(
        self,
        ids: Sequence[int],
        *,
        every: Callable[[Verified], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> torch.Tensor:
        """Append tokens and return the logits [V] after the last one, float32 on the CPU.

        Args:
            ids: the tokens.
            every: called with each chunk, of at most `PREFILL_CHUNK` tokens, and the logits after each of its tokens; never more
                than that many rows of logits are held.
            cancelled: asked before each chunk is sent. Those under way are finished and kept, and the session stays usable.

        Raises:
            InputError: no tokens, one outside the vocabulary, or more than the session has room for.
            ConnectionLostError: the server did not come back in time. The decoder stays where it was.
            CancelledError: `cancelled` said so.
        """
        self._check(ids)
        started = time.perf_counter()
        base = len(self.ids)
        size = min(PREFILL_CHUNK, self._remote.max_step_positions)
        chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
        waiting: deque[_Sent] = deque()
        client = server = 0.0
        logits = torch.empty(0)
        sent = 0
        try:
            with torch.inference_mode(), self._remote.heeding(cancelled):
                while sent < len(chunks) or waiting:
                    if sent < len(chunks) and cancelled():
                        del chunks[sent:]
                        continue
                    if sent < len(chunks):
                        begun = time.perf_counter()
                        waiting.append(self._send(chunks[sent]))
                        client += time.perf_counter() - begun
                        sent += 1
                    if len(waiting) > _IN_FLIGHT or sent == len(chunks):
                        chunk, returned = waiting.popleft(), self._remote.receive()
                        begun = time.perf_counter()
                        rows = self._logits(returned.hidden, all_rows=every is not None)  # [T, V] or [1, V]
                        client += time.perf_counter() - begun
                        server += returned.compute_us * 1e-6
                        logits = rows[-1].float()
                        if every is not None:
                            states = States(chunk.leaving, returned.hidden)
                            every(
                                Verified(
                                    chunk.base, chunk.ids, range(-1, len(rows) - 1), rows, range(len(rows)), states
                                )
                            )
        except BaseException:
            self.rollback(base)
            self._remote.abandon()
            raise
        self.ids += [token for part in chunks for token in part]
        self.last_timing = StepTiming(time.perf_counter() - started, client, server, len(ids), len(ids))
        if len(self.ids) < base + len(ids):
            raise CancelledError("stopped while the prompt was being sent")
        return logits

    def verify(self, token: int, draft: Draft, first: int, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Send a token and guesses at what follows it. Then ask for `logits`, and `keep` what is right.

        Args:
            token: the one after those held.
            draft: its nodes become rows 1 … N.
            first: nodes to wait for. The others follow in a frame of their own, which the server runs while the first answer
                is on its way; they cost time only if somebody asks about them.
            cancelled: asked while a lost server is away.

        Raises:
            InputError: a token is outside the vocabulary, or there is no room for all.
            ConnectionLostError: the server did not come back in time. The decoder stays where it was.
            CancelledError: `cancelled` said so while the server was away.
        """
        tokens = [token, *draft.tokens]
        self._check(tokens)
        parents = (-1, *(parent + 1 for parent in draft.parents))
        trip = self._trip = _Trip(len(self.ids), tokens, parents, cancelled)
        with self._undone_by_errors(trip):
            started = time.perf_counter()
            for part in filter(len, (range(first + 1), range(first + 1, len(tokens)))):
                rows = slice(part.start, part.stop)
                # Of a chain as well, once there are guesses: the length of a step is to tell their number and nothing else.
                backs = [row - parents[row] for row in part] if draft else ()
                trip.under_way.append(self._send(tokens[rows], backs))
            sent = time.perf_counter() - started
        self.last_timing = StepTiming(sent, sent, 0.0, 0, len(tokens))
        self._receive(trip)

    def logits(self, row: int) -> torch.Tensor:
        """What the model says after a row of what is being verified, [V], float32 on the CPU; waits for it if need be.

        Raises:
            ProtocolError: nothing was verified since the last `keep`.
            ConnectionLostError: as `verify`.
            CancelledError: as `verify`.
        """
        trip = self._verified()
        while row >= trip.rows:
            self._receive(trip)
        part = next(part for part in trip.arrived if row < part.first + len(part.logits))
        return part.logits[row - part.first].float()

    def keep(self, rows: Sequence[int]) -> Verified:
        """Of the rows being verified keep those of a path that begins with row 0; the others are forgotten.

        Args:
            rows: whose logits were asked for, the last one's perhaps not.

        Returns:
            What the round trip showed.

        Raises:
            ProtocolError: nothing was verified since, or they are no path.
        """
        trip = self._verified()
        if rows[-1] >= trip.rows:  # right, by what the row before it said, and still under way
            self._receive(trip)
        for held in (self._head_cache, self._tail_cache, self._history):
            held.keep(trip.base, rows)
        if len(trip.tokens) > 1:  # also where nothing moves, or the length of the next step would tell
            self._remote.keep(trip.base, rows)
        self.ids += [trip.tokens[row] for row in rows]
        self._trip = None
        return trip.shown(rows)

    def rollback(self, position: int) -> None:
        """Forget the tokens from `position` on. The server follows with the next step."""
        self._trip = None
        del self.ids[position:]
        for cache in (self._head_cache, self._tail_cache):
            cache.rollback(min(position, cache.position))

    def reuse(self, ids: Sequence[int], least: int = 1) -> Sequence[int]:
        """Roll back to the longest common prefix with `ids` and return the ids still to send.

        Args:
            ids: what is to be held.
            least: ids to send in any case: one gives the logits after the last. With none to send, nothing is rolled back.
        """
        common = common_length(self.ids, ids[: len(ids) - least])
        if common < len(ids):
            self.rollback(common)
        return ids[common:]

    @property
    def verifying(self) -> bool:
        """Whether rows wait for a `keep`."""
        return self._trip is not None

    def _verified(self) -> _Trip:
        if self._trip is None:
            raise ProtocolError("nothing is being verified")
        return self._trip

    def _send(self, ids: Sequence[int], backs: Sequence[int] = ()) -> _Sent:
        """Run tokens through the head and send what leaves it; `backs` as in `Tree.extend`."""
        base = self._head_cache.position
        tokens = torch.tensor([ids], device=self._device)  # [1, T]
        with self._turn:
            leaving = self._parts.head(tokens, self._head_cache, backs)[0]  # [T, D]
        self._remote.send(base, self._defence.release(leaving, self._history.extend(base, ids, backs)), backs)
        self.released += len(ids)
        return _Sent(base, ids, backs, leaving)

    def _receive(self, trip: _Trip) -> None:
        """Wait for the oldest rows under way."""
        with self._undone_by_errors(trip):
            sent, started = trip.under_way.popleft(), time.perf_counter()
            returned = self._remote.receive()
            arrived = time.perf_counter()
            logits = self._logits(returned.hidden, all_rows=True, backs=sent.backs)  # [T, V]
        trip.arrived.append(_Arrived(trip.rows, logits, States(sent.leaving, returned.hidden)))
        ended, before = time.perf_counter(), self.last_timing
        self.last_timing = StepTiming(
            before.total + ended - started,
            before.client + ended - arrived,
            before.server + returned.compute_us * 1e-6,
            trip.rows,
            before.sent,
        )

    @contextmanager
    def _undone_by_errors(self, trip: _Trip) -> Iterator[None]:
        try:
            with torch.inference_mode(), self._remote.heeding(trip.cancelled):
                yield
        except BaseException:
            self.rollback(trip.base)
            self._remote.abandon()
            raise

    def _logits(self, hidden: torch.Tensor, all_rows: bool, backs: Sequence[int] = ()) -> torch.Tensor:
        """Logits after the last position [1, V], or after every one [T, V]."""
        inputs = hidden.to(self._device, self._dtype).unsqueeze(0)  # [1, T, D]
        with self._turn:
            logits: torch.Tensor = self._parts.tail(inputs, self._tail_cache, 0 if all_rows else 1, backs)[0]
        return logits.cpu()

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("nothing to decode: give at least one token id")
        wrong = next((i for i in ids if not 0 <= i < self._vocabulary), None)
        if wrong is not None:
            raise InputError(f"token id {wrong} is outside the vocabulary of {self._vocabulary}")
        if len(ids) > self.room:
            raise InputError(
                f"{len(ids)} more tokens do not fit: the session holds {len(self.ids)} of "
                f"{self._remote.max_positions}; shorten the prompt or raise the server's --max-positions"
            )


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other; not copied if there is one, as most round trips have."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
