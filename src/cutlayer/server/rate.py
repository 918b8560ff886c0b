"""How many positions an identity may send in the long run. Who sends more waits; nobody else notices.

A bucket per identity fills at the allowed rate up to `BURST_S` seconds' worth. A step takes its positions at once and waits
until the bucket is no longer in debt, so one long prefill is not refused, only paid for afterwards.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

BURST_S: Final = 10.0
"""Seconds of sending that may be saved up."""


class Rates:
    """Buckets of all identities.

    Args:
        per_s: positions per second of one identity; 0 sets no limit.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._full_at: dict[str, float] = {}
        """When each bucket will be full again; the past means now."""

    async def pass_through(self, owner: str, positions: int) -> None:
        """Wait until `owner` may send `positions` more."""
        if self._per_s:
            await asyncio.sleep(self.owed(owner, positions, time.monotonic()))

    def owed(self, owner: str, positions: int, now: float) -> float:
        """Take `positions` from the bucket at time `now`; returns the seconds its owner has to wait."""
        full_at = max(self._full_at.get(owner, now), now) + positions / self._per_s
        self._full_at[owner] = full_at
        return max(full_at - now - BURST_S, 0.0)
