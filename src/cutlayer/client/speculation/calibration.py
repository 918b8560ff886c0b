"""How often a guess that claims a chance turns out right, learned while it happens.

Claims are sorted into buckets. The chance of a bucket is the mean of a Beta distribution that began at the claim and was
updated by every guess whose parent was right: hits over tries, with the claim counting as a few tries of its own. Old tries fade, so
that a conversation that turns from prose to code is believed soon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

_PRIOR: Final = 8.0
"""Tries that the claim counts as."""
_MEMORY: Final = 200.0
"""Tries after which older ones have faded to 1/e."""


class Calibration:
    """Chances by bucket."""

    def __init__(self) -> None:
        self._hits: dict[Hashable, float] = {}
        self._tries: dict[Hashable, float] = {}

    def chance(self, bucket: Hashable, claimed: float) -> float:
        """The chance of a guess of `bucket` that claims `claimed`, both in (0, 1)."""
        hits, tries = self._hits.get(bucket, 0.0), self._tries.get(bucket, 0.0)
        return (hits + _PRIOR * claimed) / (tries + _PRIOR)

    def learn(self, bucket: Hashable, right: bool) -> None:
        """A guess of `bucket` whose parent was right was, or was not."""
        fade = 1 - 1 / _MEMORY
        self._hits[bucket] = self._hits.get(bucket, 0.0) * fade + right
        self._tries[bucket] = self._tries.get(bucket, 0.0) * fade + 1
