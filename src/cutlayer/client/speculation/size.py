"""How many guesses pay: the tree that brings most tokens per second on this link, with this model, for this text.

A round trip with n guesses brings E(n) tokens, by the chances their sources state, and takes t(n) seconds. The best n maximises
E(n) / t(n), the throughput of the synchronous model (tok/s = E / (RTT + client + server + bytes / bandwidth)). t is measured:
every round trip tells what so many rows took, and n = 0 is always in the choice, so a text that cannot be guessed, or a link on
which rows are dear, falls back to one token per round trip.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.draft import expected_tokens

if TYPE_CHECKING:
    from cutlayer.client.speculation.draft import Draft

_MEMORY: Final = 24
"""Round trips that count."""
_LEAST_SHARE: Final = 0.002
"""A row's share of a round trip at the least: rows are never free."""
_ROWS_OF_ONE: Final = 16
"""One row alone takes as long as this many more in company, roughly: most of it is reading weights."""
_PRIOR_WEIGHT: Final = 100.0
"""The prior slope counts as one measurement ten rows away from the others."""


class TripTime:
    """Seconds of a round trip as a line over its rows, by least squares over the last ones.

    Trips of one length tell nothing of the slope. Until others come, a row is taken to cost what it did in the prefill.
    """

    def __init__(self) -> None:
        self._trips: deque[tuple[int, float]] = deque(maxlen=_MEMORY)
        self._prior: float | None = None
        self._waiting = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """A round trip of `rows` rows took so long."""
        self._trips.append((rows, seconds))

    def add_prefill(self, rows: int, computing: float, waiting: float) -> None:
        """So many rows took so long in head, body and tail, and beyond that on the way."""
        self._prior = computing / rows
        self._waiting = waiting

    def of(self, rows: int) -> float:
        """Seconds a round trip of `rows` rows takes; up to a factor, before anything was measured."""
        if not self._trips:
            # A few rows cost more than their share of many: the weights are read for them alone.
            return self._waiting + (_ROWS_OF_ONE + rows) * (self._prior or _LEAST_SHARE)
        lengths, times = zip(*self._trips, strict=True)
        middle, mean = fmean(lengths), fmean(times)
        spread = sum((length - middle) ** 2 for length in lengths)
        covariance = sum((length - middle) * time for length, time in self._trips)
        least = _LEAST_SHARE * mean
        prior = max(self._prior or 0.0, least)
        slope = max((covariance + _PRIOR_WEIGHT * prior) / (spread + _PRIOR_WEIGHT), least)
        return float(max(mean + slope * (rows - middle), least))


def best_size(draft: Draft, time: TripTime) -> int:
    """Number of nodes of a ranked draft that brings most tokens per second."""
    rates = [tokens / time.of(1 + n) for n, tokens in enumerate(expected_tokens(draft))]
    return max(range(len(rates)), key=rates.__getitem__)
