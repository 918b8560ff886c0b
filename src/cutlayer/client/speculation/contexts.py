"""What is known to follow short contexts, and the contexts of one length as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from cutlayer.client.speculation.mixture import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.mixture import Opinion
    from cutlayer.client.speculation.speculator import Verified

LONGEST: Final = 2
"""Tokens of the longest context that sessions learn. Three bring nothing beside lookup, and cost a third of the time."""


class Contexts(Protocol):
    """Contexts of 1 … `longest` tokens → what may follow, with probabilities."""

    longest: int

    def get(self, context: tuple[int, ...]) -> Opinion:
        """What may follow exactly this context, likeliest first; empty if nothing is known."""
        ...

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """See `Source.learn`."""
        ...

    def close(self) -> None:
        """See `Source.close`."""
        ...


class Order:
    """The contexts of one length, as a source.

    Args:
        known: shared by the orders; that of the longest looks after it.
        length: tokens of a context.
    """

    def __init__(self, known: Contexts, length: int) -> None:
        self._known = known
        self._length = length

    def follow(self, ids: Sequence[int]) -> None:
        """See `Source.follow`."""

    def propose(self, context: tuple[int, ...]) -> Opinion:
        """See `Source.propose`."""
        return self._known.get(context[-self._length :]) if len(context) >= self._length else NOTHING

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """See `Source.learn`."""
        if self._length == self._known.longest:
            self._known.learn(seen, contexts)

    def close(self) -> None:
        """See `Source.close`."""
        if self._length == self._known.longest:
            self._known.close()


class LongestKnown:
    """The longest context of two tokens and more that something is known about, as a source.

    Args:
        known: read, and never taught.
    """

    def __init__(self, known: Contexts) -> None:
        self._known = known

    def follow(self, ids: Sequence[int]) -> None:
        """See `Source.follow`."""

    def propose(self, context: tuple[int, ...]) -> Opinion:
        """See `Source.propose`."""
        lengths = range(min(self._known.longest, len(context)), 1, -1)
        return next(filter(None, (self._known.get(context[-length:]) for length in lengths)), NOTHING)

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """See `Source.learn`. It learns nothing."""

    def close(self) -> None:
        """See `Source.close`."""
