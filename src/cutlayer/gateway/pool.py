"""The sessions, and which of them a request gets.

A request takes the free session that holds most of its prompt already, so that a conversation's next turn sends only what is new.
Up to `sessions` are opened, each when it is first needed; who finds none free waits in a queue that is fair among API keys.

A session belongs to one API key. When another key needs its place, it is closed and a new one opened: whether a prompt was
already held shows in the time of the first token, and noise keyed by one session's secret would tell the server that two keys
sent the same words.

All methods run in the event loop's thread, except `Slot.prepare` and `Slot.discard`, which talk to the server and run in the
thread that has the slot.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.errors import ConnectionLostError, CutlayerError
from cutlayer.gateway.fair_queue import FairQueue
from cutlayer.gateway.problems import ApiError
from cutlayer.prefix import common_length

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.gateway.served import Session

_CONTINUES: Final = 0.5
"""Share of what a session holds that a prompt must begin with to be taken for that conversation's continuation. Less, such as a
system prompt alone, is no reason to throw the conversation away while another place is free."""
_SMOOTHING: Final = 0.2
_LONGEST_RETRY_S: Final = 60


class Slot:
    """A place for one session.

    Args:
        first: what further sessions are made from.
        session: None until it is needed.
    """

    def __init__(self, first: Session, session: Session | None = None) -> None:
        self._first = first
        self._session = session
        self._owner: str | None = None
        self.used = 0.0
        """When it was last given back, on the monotonic clock."""

    @property
    def owner(self) -> str | None:
        """Whose session it is; None if it was never used."""
        return self._owner

    @property
    def opened(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    @property
    def released(self) -> int:
        """Positions its session has sent to the server."""
        return self._session.released if self._session is not None else 0

    def holds(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Tokens `prompt` begins with that are held, and tokens held in all."""
        held = self._session.held if self._session is not None else ()
        return common_length(held, prompt), len(held)

    def prepare(self, owner: str) -> Session:
        """The session, opened or exchanged if need be.

        Raises:
            WireError: the server is away or has no room.
        """
        if self._owner not in (None, owner):
            self.discard()
        if self._session is None:
            self._session = self._first.another()
        self._owner = owner
        return self._session

    def abort(self) -> None:
        """Break the session's connection off; whoever waits for an answer gets ConnectionLostError."""
        if self._session is not None:
            self._session.abort()

    def discard(self, error: CutlayerError | None = None) -> None:
        """Give the session up; the next request opens another."""
        session, self._session, self._owner = self._session, None, None
        if session is None:
            return
        if isinstance(error, ConnectionLostError):
            session.abort()  # taking leave would wait once more for a server that is away
        else:
            session.close()


class _Use(NamedTuple):
    """What a place is in use for."""

    owner: str
    prompt: Sequence[int]


class SessionPool:
    """Places for sessions.

    Args:
        first: an open session; the pool owns it from now on.
        sessions: places.
        waiting: requests of one key that may wait.
        changed: called with the number of places in use and of requests waiting.
    """

    def __init__(
        self,
        first: Session,
        sessions: int,
        waiting: int,
        changed: Callable[[int, int], None] = lambda used, queue: None,
    ) -> None:
        self.slots = [Slot(first, first), *(Slot(first) for _ in range(sessions - 1))]
        self._uses: dict[Slot, _Use] = {}
        self._queue: FairQueue[tuple[Sequence[int], asyncio.Future[Slot]]] = FairQueue(waiting)
        self._changed = changed
        self._seconds = 1.0
        """A request takes, on a running average."""
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def in_use(self) -> int:
        """Places in use."""
        return len(self._uses)

    @property
    def has_free(self) -> bool:
        """Whether a place is free that nobody waits for."""
        return self.in_use < len(self.slots) and not self._queue

    def in_use_for(self, owner: str, prompt: Sequence[int]) -> list[Slot]:
        """Places in use by the same API key for conversations that `prompt` continues."""
        return [
            slot
            for slot, use in self._uses.items()
            if use.owner == owner and _continues(common_length(use.prompt, prompt), len(use.prompt))
        ]

    def take_free(self, owner: str, prompt: Sequence[int]) -> Slot | None:
        """A place without waiting, or None; see `take`.

        Raises:
            ApiError: 503 shutting down.
        """
        if self._draining:
            raise ApiError.away("this gateway is shutting down")
        if not self.has_free:
            return None
        slot = self._best(owner, prompt)
        self._take(slot, _Use(owner, prompt))
        return slot

    async def take(self, owner: str, prompt: Sequence[int]) -> Slot:
        """Wait for a place; `give` it back.

        Args:
            owner: the API key's name.
            prompt: token ids, to find the session that holds most of them.

        Raises:
            ApiError: 429 too many wait already, 503 shutting down.
        """
        slot = self.take_free(owner, prompt)
        if slot is not None:
            return slot
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiter = (prompt, future)
        if not self._queue.add(owner, waiter):
            raise ApiError(
                429,
                f"all {len(self.slots)} sessions are busy and {self._queue.limit} requests wait already; try again later",
                "rate_limit_error",
                code="rate_limit_exceeded",
                retry_s=self._wait_s(),
            )
        self._tell()
        try:
            return await future
        except asyncio.CancelledError:
            self._queue.remove(owner, waiter)
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give(future.result(), 0.0)
            self._tell()
            raise

    def give(self, slot: Slot, seconds: float) -> None:
        """Take a place back.

        Args:
            slot: what `take` returned.
            seconds: how long it was in use; 0 if it was not.
        """
        slot.used = time.monotonic()
        if seconds:
            self._seconds += _SMOOTHING * (seconds - self._seconds)
        del self._uses[slot]
        while self.in_use < len(self.slots) and (turn := self._queue.next()) is not None:
            owner, (prompt, future) = turn
            if not future.done():
                chosen = self._best(owner, prompt)
                self._take(chosen, _Use(owner, prompt))
                future.set_result(chosen)
        if not self.in_use:
            self._idle.set()
        self._tell()

    def drain(self) -> None:
        """Let nobody in any more."""
        self._draining = True
        while (turn := self._queue.next()) is not None:
            _, (_, future) = turn
            if not future.done():
                future.set_exception(ApiError.away("this gateway is shutting down"))
        self._tell()

    async def idle(self) -> None:
        """Wait until no place is in use."""
        await self._idle.wait()

    def abort(self) -> None:
        """Break off what is in progress."""
        for slot in self._uses:
            slot.abort()

    def close(self) -> None:
        """Close all sessions that are not in use. Blocks."""
        for slot in self._free():
            slot.discard()

    def _free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot not in self._uses]

    def _take(self, slot: Slot, use: _Use) -> None:
        self._uses[slot] = use
        self._idle.clear()
        self._tell()

    def _best(self, owner: str, prompt: Sequence[int]) -> Slot:
        free = self._free()
        ours = [slot for slot in free if slot.owner == owner]
        common = {slot: slot.holds(prompt) for slot in ours}
        going_on = [slot for slot in ours if _continues(*common[slot])]
        if going_on:
            return max(going_on, key=lambda slot: (common[slot][0], -slot.used))
        unused = [slot for slot in free if slot.owner is None]
        if unused:
            return max(unused, key=lambda slot: slot.opened)
        if ours:
            return max(ours, key=lambda slot: (common[slot][0], -slot.used))
        return min(free, key=lambda slot: slot.used)

    def _wait_s(self) -> int:
        seconds = math.ceil(self._seconds * (len(self._queue) + 1) / len(self.slots))
        return max(1, min(_LONGEST_RETRY_S, seconds))

    def _tell(self) -> None:
        self._changed(self.in_use, len(self._queue))


def _continues(common: int, length: int) -> bool:
    """Whether a prompt goes on with a conversation of that length, of which it begins with `common` tokens."""
    return common > 0 and common >= _CONTINUES * length
