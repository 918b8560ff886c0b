"""A speculator that grows trees of its own, as a source: what it guesses after a context is what stands there in its tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.growth import HORIZON
from cutlayer.client.speculation.mixture import NOTHING, Opinion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Speculator, Verified

_NODES: Final = 48
"""Of its tree; the mixture picks among them."""


class Drafted:
    """See the module.

    Args:
        speculator: whose trees they are.
    """

    def __init__(self, speculator: Speculator) -> None:
        self._speculator = speculator
        self._followers: dict[tuple[int, ...], Opinion] = {}

    def follow(self, ids: Sequence[int]) -> None:
        """See `Source.follow`."""
        draft = self._speculator.draft(ids, _NODES)
        self._followers = {}
        contexts: list[tuple[int, ...]] = []
        for token, parent, chance in zip(draft.tokens, draft.parents, draft.chances, strict=True):
            context = tuple(ids[-HORIZON:]) if parent < 0 else contexts[parent]
            self._followers.setdefault(context, Opinion())[token] = chance
            contexts.append((*context, token)[-HORIZON:])

    def propose(self, context: tuple[int, ...]) -> Opinion:
        """See `Source.propose`."""
        return self._followers.get(context, NOTHING)

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """See `Source.learn`."""
        self._speculator.observe(seen)

    def close(self) -> None:
        """See `Source.close`."""
        self._speculator.close()
