"""Let a prepared attack read prompts, together where that is cheaper, and time it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.attacks.attack import Guess, Observation, Reader

_TOGETHER: Final = 16
"""Prompts handed to an attack that can read several at a time."""


@runtime_checkable
class ReadsMany(Protocol):
    """A reader to which several prompts at once are cheaper than one after the other."""

    def read_many(self, observations: Sequence[Observation]) -> list[Guess]:
        """Guesses of several prompts."""
        ...


class Timed(NamedTuple):
    """A guess and what it took."""

    guess: Guess
    seconds: float
    """Of prompts that were read together, an equal share."""


def read_all(
    reader: Reader, observations: Sequence[Observation], progress: Callable[[float], None] = lambda share: None
) -> list[Timed]:
    """Guesses of all prompts, in order.

    Args:
        reader: a prepared attack.
        observations: one per prompt.
        progress: told the share done.
    """
    together = _TOGETHER if isinstance(reader, ReadsMany) else 1
    timed: list[Timed] = []
    for start in range(0, len(observations), together):
        batch = observations[start : start + together]
        began = time.perf_counter()
        guesses = reader.read_many(batch) if isinstance(reader, ReadsMany) else [reader.read(batch[0])]
        each = (time.perf_counter() - began) / len(batch)
        timed += [Timed(guess, each) for guess in guesses]
        progress(len(timed) / len(observations))
    return timed
