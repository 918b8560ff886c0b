"""From what a speculator guesses to what is sent: cut to the size that pays, or filled up to a fixed one."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.draft import ROOT, Draft
from cutlayer.client.speculation.size import TripTime, best_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.decoder import StepTiming
    from cutlayer.client.speculation.speculator import Speculator, Verified

MOST_NODES: Final = 63
"""Guesses sent along at most: with the token they follow 64 rows, which a server runs in one piece."""
_FURTHER: Final = 8
"""Guesses made beyond as many as were sent before: fewer would not tell when more begin to pay."""


class Drafting:
    """The guesses of one session.

    Args:
        speculator: makes them.
        vocabulary: V, for rows that only fill up.
        pad_to: rows every step carries, so that its size tells an observer nothing; 0 sends what pays.
        least_wait: seconds a round trip must spend on the way for guesses to be sent at all.
    """

    def __init__(self, speculator: Speculator, vocabulary: int, pad_to: int = 0, least_wait: float = 0.0) -> None:
        self._speculator = speculator
        self._vocabulary = vocabulary
        self._pad_to = pad_to
        self._least_wait = least_wait
        self._time = TripTime()
        self._reach = MOST_NODES
        """Guesses worth making, from how many were sent last: what is not sent is not worth the time it takes to guess it."""
        self.seconds = 0.0
        """Spent guessing and learning so far."""
        self._counted = 0.0
        """Of those, what is part of the time of a round trip already."""

    @property
    def wants_prompt(self) -> bool:
        """Whether to `observe` the prompt as well."""
        return self._speculator.wants_prompt

    def draft(self, ids: Sequence[int], most: int, depth: int) -> tuple[Draft, int]:
        """Guesses worth sending after the last of `ids`, and how many of them are worth waiting for.

        Args:
            ids: prompt and answer so far.
            most: nodes there is room for.
            depth: tokens the answer may still have after the next one.
        """
        started = time.perf_counter()
        most = min(most, MOST_NODES)
        draft = Draft()
        if most > 0 and depth > 0 and self._time.wait() >= self._least_wait:
            reach = min(most, self._reach) if self._speculator.adaptive else most
            draft = self._speculator.draft(ids, reach).within(depth).ranked()
        if self._pad_to:
            draft = self._filled(draft, min(self._pad_to - 1, most))
            now = len(draft)
        elif self._speculator.adaptive:
            now = best_size(draft, self._time)
            draft = draft.first(now + self._time.idle_rows())
            self._reach = len(draft) + _FURTHER
        else:
            now = len(draft)
        self.seconds += time.perf_counter() - started
        return draft, now

    def observe(self, seen: Verified) -> None:
        """Learn from a round trip, or a chunk of a prompt."""
        started = time.perf_counter()
        self._speculator.observe(seen)
        self.seconds += time.perf_counter() - started

    def took(self, timing: StepTiming) -> None:
        """Learn what a step took, the prefill included, and the guessing before it."""
        guessing, self._counted = self.seconds - self._counted, self.seconds
        computing = timing.client + timing.server + guessing
        if timing.rows <= MOST_NODES + 1:
            self._time.add(timing.rows, timing.total + guessing, computing)
        else:
            self._time.add_prefill(timing.rows, timing.total + guessing, computing)

    def close(self) -> None:
        """Keep what outlives the session."""
        self._speculator.close()

    def _filled(self, draft: Draft, count: int) -> Draft:
        """Exactly `count` nodes; what is missing are tokens drawn from the whole vocabulary, each a first guess."""
        draft = draft.first(count)
        missing = count - len(draft)
        return Draft(
            (*draft.tokens, *(secrets.randbelow(self._vocabulary) for _ in range(missing))),
            (*draft.parents, *[ROOT] * missing),
            (*draft.chances, *[1 / self._vocabulary] * missing),
            (*draft.laws, *[None] * missing) if draft.laws else (),
        )
