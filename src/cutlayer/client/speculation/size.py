"""How many guesses pay: the tree that brings most tokens per second on this link, with this model, for this text.

A round trip with n guesses brings E(n) tokens, by the chances their sources state, and takes t(n) seconds. The best n maximises
E(n) / t(n), the throughput of the synchronous model (tok/s = E / (RTT + client + server + bytes / bandwidth)). t is measured:
every round trip tells what so many rows took, and n = 0 is always in the choice, so a text that cannot be guessed, or a link on
which rows are dear, falls back to one token per round trip.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.client.speculation.draft import expected_tokens

if TYPE_CHECKING:
    from cutlayer.client.speculation.draft import Draft

_MEMORY: Final = 24
"""Round trips that count."""
_LEAST_SHARE: Final = 0.002
"""A row's share of a round trip at the least: rows are never free."""
_ROWS_OF_ONE: Final = 16
"""One row alone takes as long as this many more in company, roughly: most of it is reading weights."""
_PRIOR_WEIGHT: Final = 25.0
"""The prior slope counts as one measurement five rows away from the others."""
_ALIKE: Final = 4
"""Lengths that differ by less are taken for one."""
_SOME_TRIPS: Final = 8


class _Line(NamedTuple):
    """Seconds over rows."""

    middle: float
    """Rows of a trip of mean length."""
    mean: float
    """Seconds it takes."""
    per_row: float


class TripTime:
    """Seconds of a round trip as a line over its rows, by least squares over the last ones.

    Trips of one length tell nothing of the slope. Until others come, a row is taken to cost what it did in the prefill.
    """

    def __init__(self) -> None:
        self._trips: deque[tuple[int, float]] = deque(maxlen=_MEMORY)
        self._waits: deque[float] = deque(maxlen=_MEMORY)
        self._prior: float | None = None
        self._fitted: _Line | None = None

    def add(self, rows: int, seconds: float, computing: float) -> None:
        """A round trip of `rows` rows took so long, and so much of it in head, body and tail."""
        self._trips.append((rows, seconds))
        self._fitted = None
        self._waits.append(max(seconds - computing, 0.0))

    def add_prefill(self, rows: int, seconds: float, computing: float) -> None:
        """So many rows took so long together."""
        self._prior = computing / rows
        self._fitted = None
        self._waits.append(max(seconds - computing, 0.0))

    def of(self, rows: int) -> float:
        """Seconds a round trip of `rows` rows takes; up to a factor, before anything was measured."""
        if not self._trips:
            # A few rows cost more than their share of many: the weights are read for them alone.
            return self.wait() + (_ROWS_OF_ONE + rows) * self._least_per_row()
        line = self._line()
        return max(line.mean + line.per_row * (rows - line.middle), _LEAST_SHARE * line.mean)

    def lacks_contrast(self) -> bool:
        """Whether the last trips were all of about one length, so that a wrong belief about the cost of rows would last."""
        lengths = [rows for rows, _ in self._trips]
        return len(lengths) >= _SOME_TRIPS and max(lengths) - min(lengths) < _ALIKE

    def idle_rows(self) -> int:
        """Rows the server could run while an answer and the next step are on their way: half of that time, to be sure."""
        if not self._trips:
            return 0
        return int(self.wait() / 2 / self._line().per_row)

    def wait(self) -> float:
        """Seconds a round trip spends on the way."""
        return median(self._waits) if self._waits else 0.0

    def _least_per_row(self) -> float:
        mean = fmean(seconds for _, seconds in self._trips) if self._trips else 1.0
        return max(self._prior or 0.0, _LEAST_SHARE * mean)

    def _line(self) -> _Line:
        """Through the last trips, of which there must be one."""
        if self._fitted is None:
            lengths, times = zip(*self._trips, strict=True)
            middle, mean = fmean(lengths), fmean(times)
            spread = sum((length - middle) ** 2 for length in lengths)
            covariance = sum((length - middle) * seconds for length, seconds in self._trips)
            slope = (covariance + _PRIOR_WEIGHT * self._least_per_row()) / (spread + _PRIOR_WEIGHT)
            self._fitted = _Line(middle, mean, max(slope, _LEAST_SHARE * mean))
        return self._fitted


def best_size(draft: Draft, time: TripTime) -> int:
    """Number of nodes of a ranked draft that brings most tokens per second; now and then another, to learn what rows cost."""
    rates = [tokens / time.of(1 + n) for n, tokens in enumerate(expected_tokens(draft))]
    best = max(range(len(rates)), key=rates.__getitem__)
    if time.lacks_contrast():
        return best // 2 if best >= 2 * _ALIKE else min(best + 2 * _ALIKE, len(draft))
    return best
