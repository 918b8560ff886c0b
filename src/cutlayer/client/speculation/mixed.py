"""A speculator made of sources: at every node of the tree all are asked, and their answers mixed.

So a draft that copies from the prompt goes on with recycled guesses where the copy ends, and the reverse. Slow sources are asked
only where the others see no way far ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.draft import expected_tokens
from cutlayer.client.speculation.growth import HORIZON, grow
from cutlayer.client.speculation.mixture import NOTHING, Mixture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.speculation.mixture import Opinion
    from cutlayer.client.speculation.source import Source, Weighed
    from cutlayer.client.speculation.speculator import Verified


_FAR: Final = 5.0
"""Tokens a round trip is expected to bring from which on slow sources would add little."""


class Mixed:
    """See the module.

    Args:
        sources: with what they are believed at first.
        doubt: log-weight, at first, of "none of the tokens named".
        slow: further sources, to be asked where those are not sure.
    """

    wants_prompt = False
    adaptive = True

    def __init__(self, sources: Sequence[Weighed], doubt: float, *, slow: Sequence[Weighed] = ()) -> None:
        every = (*sources, *slow)
        self._sources = [weighed.source for weighed in every]
        self._quick, self._slow = self._sources[: len(sources)], self._sources[len(sources) :]
        self._mixture = Mixture([weighed.weight for weighed in every], [weighed.doubt for weighed in every], doubt)
        self._ids: list[int] = []
        """Of the last draft."""
        self._verified: list[int] = []
        """Tokens that went through the model and stayed, as far as it was shown."""
        self._untaught: tuple[Verified, list[tuple[int, ...]]] | None = None

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        # How right the sources were has to be known before they are told.
        self._weigh(ids)
        self._teach()
        self._ids, self._verified = list(ids), list(ids[:-1])
        for source in self._quick:
            source.follow(ids)
        heard = _Heard(self._mixture, self._quick, self._slow)
        draft = grow(ids, heard.quickly, most)
        if not self._slow or expected_tokens(draft)[-1] >= _FAR:
            return draft
        for source in self._slow:
            source.follow(ids)
        return grow(ids, heard.fully, most)

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`."""
        self._teach()
        contexts: list[tuple[int, ...]] = []
        before = tuple(self._verified[max(0, seen.base - HORIZON) : seen.base])
        for token, parent in zip(seen.tokens, seen.parents, strict=True):
            contexts.append((*(before if parent < 0 else contexts[parent]), token)[-HORIZON:])
        self._verified[seen.base :] = [seen.tokens[row] for row in seen.kept]
        self._untaught = seen, contexts

    def close(self) -> None:
        """See `Speculator.close`."""
        self._teach()
        for source in self._sources:
            source.close()

    def _weigh(self, ids: Sequence[int]) -> None:
        """Adapt the mixture to the tokens that have come to `ids` since the last draft."""
        known = len(self._ids)
        if not known or list(ids[:known]) != self._ids:
            return
        for at in range(known, len(ids)):
            context = tuple(ids[max(0, at - HORIZON) : at])
            self._mixture.learn([source.propose(context) for source in self._sources], ids[at])

    def _teach(self) -> None:
        """Have the sources learn from the last round trip."""
        if self._untaught is not None:
            for source in self._sources:
                source.learn(*self._untaught)
            self._untaught = None


class _Heard:
    """What the sources say while one draft is made; the second tree mostly asks what the first one did.

    Args:
        mixture: weighs them.
        quick: asked about every context, once.
        slow: asked by `fully` as well.
    """

    def __init__(self, mixture: Mixture, quick: Sequence[Source], slow: Sequence[Source]) -> None:
        self._mixture = mixture
        self._quick = quick
        self._slow = slow
        self._said: dict[tuple[int, ...], tuple[list[Opinion], dict[int, float]]] = {}
        """Opinions of the quick ones, and the chances that follow from those alone."""

    def quickly(self, context: tuple[int, ...]) -> Iterable[tuple[int, float]]:
        """Chances by the quick ones."""
        return self._of_quick(context)[1].items()

    def fully(self, context: tuple[int, ...]) -> Iterable[tuple[int, float]]:
        """Chances by all."""
        opinions, chances = self._of_quick(context)
        further = [source.propose(context) for source in self._slow]
        return (self._mixture.chances([*opinions, *further]) if any(further) else chances).items()

    def _of_quick(self, context: tuple[int, ...]) -> tuple[list[Opinion], dict[int, float]]:
        if context not in self._said:
            opinions = [source.propose(context) for source in self._quick]
            self._said[context] = opinions, self._mixture.chances([*opinions, *(NOTHING for _ in self._slow)])
        return self._said[context]
