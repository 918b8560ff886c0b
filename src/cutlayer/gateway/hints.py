"""Hints under way: prompts whose last message is still being written. Answers come before them.

A hint is worth something only before its conversation's next answer begins, and must cost no answer anything. So it never
waits: it gets a session at once or none. It gives way where an answer finds all sessions in use, and the answer to its own
conversation ends it and goes on in its session; beside it, in another, the answer would send everything a second time. What a
hint has sent by then stays sent and held.

All methods run in the event loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cutlayer.gateway.problems import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.gateway.pool import SessionPool, Slot
    from cutlayer.gateway.run import Run


class Hints:
    """Those of one gateway.

    Args:
        pool: where they take their sessions from.
    """

    def __init__(self, pool: SessionPool) -> None:
        self._pool = pool
        self._places: dict[Run, Slot] = {}

    def take(self, owner: str, prompt: Sequence[int]) -> Slot:
        """A place, if one is free and the conversation is in no other.

        Args:
            owner: the API key's name.
            prompt: token ids.

        Raises:
            ApiError: 429 there is none, 503 shutting down.
        """
        if self._pool.in_use_for(owner, prompt):
            raise _refused("an answer or another hint of this conversation is under way")
        slot = self._pool.take_free(owner, prompt)
        if slot is None:
            raise _refused("all sessions are busy, and a hint is not worth waiting for")
        return slot

    def add(self, run: Run, slot: Slot) -> None:
        """Note what is done in a place that `take` gave."""
        self._places[run] = slot
        run.ended.add_done_callback(lambda _: self._places.pop(run))

    async def make_way(self, owner: str, prompt: Sequence[int]) -> None:
        """Before an answer takes a session: end the hints it would wait for, and have that of its own conversation ended.

        Args:
            owner: the API key's name.
            prompt: token ids.
        """
        busy = self._pool.in_use_for(owner, prompt)
        same = [run for run, slot in self._places.items() if slot in busy]
        # The oldest makes the one place that is needed.
        in_the_way = [] if self._pool.has_free else list(self._places)[:1]
        for run in same or in_the_way:
            run.cancel(_refused("an answer took its place"))
        if same:
            await asyncio.wait([run.ended for run in same])


def _refused(why: str) -> ApiError:
    """Without Retry-After: the next hint says more than this one would by then."""
    return ApiError(429, f"{why}; go on without it", "rate_limit_error", code="no_free_session")
