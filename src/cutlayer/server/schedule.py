"""Which rows go into the next forward: everybody's short steps, and as much of the long ones as the others can bear.

Reading the weights is most of what a decode step costs, and one forward reads them once, so all short steps go together.
A long prefill would make everybody wait; while others are talking, it goes in slices that at most double the time of a forward.
Tenants take turns with their slices.

Nothing here knows a model, a thread or a clock: times are handed in, in seconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

SHORT: Final = 64
"""Rows of a step that is never sliced: one token, or a tree of drafted ones."""
MOST_ROWS: Final = 512
"""Rows of one forward."""
_FIRST_SLICE: Final = 64
"""Before anything was measured."""
_SMALLEST_SLICE: Final = 8
_TALKING_S: Final = 2.0
"""A session that decoded this recently is waiting for its next token, or about to."""
_MEMORY: Final = 0.2
"""Weight of the newest measurement in a running mean."""


class Step:
    """One step of a session on its way through the model.

    Args:
        session: whose; a session has one step at a time.
        owner: whose the session is.
        rows: how many, T.
    """

    def __init__(self, session: Hashable, owner: str, rows: int) -> None:
        self.session = session
        self.owner = owner
        self.rows = rows
        self.done = 0
        """Rows that went through already."""

    @property
    def left(self) -> int:
        """Rows still to run."""
        return self.rows - self.done


S = TypeVar("S", bound=Step)


class Slice(NamedTuple, Generic[S]):
    """Rows [start, stop) of a step, for one forward."""

    step: S
    start: int
    stop: int


class _Pace:
    """When a session's next step may be expected."""

    def __init__(self) -> None:
        self.answered: float | None = None
        self.pause: float | None = None
        """Mean time between an answer and the next step."""
        self.decoded = -float("inf")

    def asked(self, now: float) -> None:
        if self.answered is not None:
            self.pause = _mean(self.pause, now - self.answered)
        self.answered = None


class Schedule(Generic[S]):
    """Steps that wait, and what was learnt about who is about to send one.

    Args:
        window: seconds a forward may wait for steps that are expected within it.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._waiting: deque[S] = deque()
        self._paces: dict[Hashable, _Pace] = {}
        self._light: float | None = None
        """Mean seconds of a forward of short steps only."""
        self._row: float | None = None
        """Mean seconds per row of a forward with many."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, step: S, now: float) -> None:
        """A step has arrived."""
        pace = self._paces.setdefault(step.session, _Pace())
        pace.asked(now)
        if step.rows <= SHORT:
            pace.decoded = now
        self._waiting.append(step)

    def drop(self, session: Hashable) -> list[S]:
        """Forget a session; returns its steps that had not finished."""
        self._paces.pop(session, None)
        dropped = [step for step in self._waiting if step.session == session]
        self._waiting = deque(step for step in self._waiting if step.session != session)
        return dropped

    def hold(self, now: float, since: float) -> float:
        """Seconds to wait for more before the next forward; `since` is when the oldest step could have begun."""
        deadline = since + self._window
        due = [
            pace.answered + pace.pause
            for pace in self._paces.values()
            if pace.answered is not None and pace.pause is not None
        ]
        likely = [time for time in due if now - self._window < time <= deadline]
        # A little beyond the last of them: half of all steps come later than the mean.
        return max(min(deadline, max(likely) + self._window / 4) - now, 0.0) if likely else 0.0

    def take(self, now: float) -> list[Slice[S]]:
        """Rows of the next forward, which belong to different sessions."""
        slices: list[Slice[S]] = []
        rows = 0
        for step in self._waiting:
            if step.left <= SHORT and rows + step.left <= MOST_ROWS:
                slices.append(Slice(step, step.done, step.rows))
                rows += step.left
        long = [step for step in self._waiting if step.left > SHORT]
        if long:
            budget = min(MOST_ROWS - rows, self._slice(now, {step.session for step in long}))
            share = max(budget // len(long), _SMALLEST_SLICE)
            for step in _in_turn(long):
                size = min(share, step.left, budget)
                if size <= 0:
                    break
                slices.append(Slice(step, step.done, step.done + size))
                budget -= size
        return slices

    def finished(self, slices: Iterable[Slice[S]], seconds: float, now: float) -> list[S]:
        """A forward has ended; returns the steps that are complete, which wait no longer."""
        slices = list(slices)
        rows = sum(stop - start for _, start, stop in slices)
        if all(step.rows <= SHORT for step, _, _ in slices):
            self._light = _mean(self._light, seconds)
        if rows > SHORT:
            self._row = _mean(self._row, seconds / rows)
        for step, _, stop in slices:
            step.done = stop
        complete = [step for step, _, _ in slices if not step.left]
        for step in complete:
            self.remove(step)
            if step.session in self._paces:
                self._paces[step.session].answered = now
        # Whoever got a slice goes to the back.
        served = {id(step) for step, _, _ in slices}
        self._waiting = deque(sorted(self._waiting, key=lambda step: id(step) in served))
        return complete

    def remove(self, step: S) -> None:
        """A step waits no longer."""
        self._waiting = deque(other for other in self._waiting if other is not step)

    def _slice(self, now: float, long: set[Hashable]) -> int:
        """Rows of long steps that a forward may carry."""
        talking = any(now - pace.decoded < _TALKING_S for session, pace in self._paces.items() if session not in long)
        if not talking:
            return MOST_ROWS
        if self._light is None or self._row is None:
            return _FIRST_SLICE
        return max(round(self._light / self._row), _SMALLEST_SLICE)


def _in_turn(steps: list[S]) -> list[S]:
    """One step of each owner, then the second of each, and so on."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, S]] = []
    for step in steps:
        seen[step.owner] = seen.get(step.owner, 0) + 1
        ranked.append((seen[step.owner], len(ranked), step))
    return [step for _, _, step in sorted(ranked, key=lambda item: item[:2])]


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _MEMORY * (new - old)
