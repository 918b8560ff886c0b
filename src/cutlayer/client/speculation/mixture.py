"""Chances from several sources that know different things: log-linear interpolation with weights learned online.

Source: Klakow 1998, "Log-linear interpolation of language models"; the weights follow the gradient of the log-likelihood of each
token that turns out to be next, as in the mixers of PAQ (Mahoney 2005). The chance of token y is

    P(y) ∝ exp Σᵢ wᵢ log pᵢ(y),    P(none of them) ∝ exp (d + Σᵢ (dᵢ + wᵢ log pᵢ(none)))

over the sources i that know the context. Powers, not sums: what a reliable source rules out stays ruled out, however sure
another one is, and that decides how a tree is spent. As the weights are fitted to what came true, so are the chances
calibrated: on 30 prompts that weights were not fitted to the sum of claims was within a tenth of the tokens brought.

Footgun: chances are conditional on the context being right, as `Draft` wants them.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_RATE: Final = 0.02
_LEAST: Final = 0.002
"""Probability that every source leaves to tokens it did not name."""
_UNNAMED: Final = 0.05
"""Share of that for any one token another source names."""
_CERTAIN: Final = 0.999


class _Terms(NamedTuple):
    """Logarithms: of what a source leaves to all tokens it did not name, of what to one of them, and of how much more it gives to
    each it did name."""

    left: float
    unnamed: float
    named: list[tuple[int, float]]


class Opinion(dict[int, float]):
    """What a source says of a context: tokens that may follow, with probabilities in (0, 1] of sum at most 1. Empty: it knows
    nothing about this context. Logarithms are taken once: it is not changed after it was first asked for."""

    @cached_property
    def terms(self) -> _Terms:
        """What the mixture adds up."""
        left = max(1 - sum(self.values()), _LEAST)
        unnamed = math.log(_UNNAMED * left)
        return _Terms(math.log(left), unnamed, [(token, math.log(p) - unnamed) for token, p in self.items()])


NOTHING: Final = Opinion()


class Mixture:
    """Weights of one session.

    Args:
        weights: w of each source.
        doubts: d of each source.
        doubt: d, when nothing else is known.
    """

    def __init__(self, weights: Sequence[float], doubts: Sequence[float], doubt: float) -> None:
        self._weights = list(weights)
        self._doubts = list(doubts)
        self._doubt = doubt

    def chances(self, opinions: Sequence[Opinion]) -> dict[int, float]:
        """Tokens that may follow and their chances, of sum below 1.

        Args:
            opinions: of each source, as `Source.propose`.
        """
        return {token: min(chance, _CERTAIN) for token, chance in self._mixed(opinions)[0].items()}

    def learn(self, opinions: Sequence[Opinion], token: int) -> None:
        """The next token was `token`: one step along the gradient of its log-chance."""
        chances, none = self._mixed(opinions)
        if not chances:
            return
        named = token in chances
        surprise = (not named) - none
        self._doubt += _RATE * surprise
        for i, opinion in enumerate(opinions):
            if not opinion:
                continue
            left, unnamed, more = opinion.terms
            shown = math.log(opinion[token]) if token in opinion else unnamed if named else left
            expected = none * left + (1 - none) * unnamed + sum(chances[known] * extra for known, extra in more)
            self._weights[i] += _RATE * (shown - expected)
            self._doubts[i] += _RATE * surprise

    def _mixed(self, opinions: Sequence[Opinion]) -> tuple[dict[int, float], float]:
        """Probability of each token named, and of none of them."""
        scores: dict[int, float] = {}
        none, floor = self._doubt, 0.0
        for opinion, weight, doubt in zip(opinions, self._weights, self._doubts, strict=True):
            if not opinion:
                continue
            left, unnamed, named = opinion.terms
            none += doubt + weight * left
            floor += weight * unnamed
            for token, extra in named:
                scores[token] = scores.get(token, 0.0) + weight * extra
        if not scores:
            return {}, 1.0
        top = max(none, floor + max(scores.values()))
        powers = {token: math.exp(score + floor - top) for token, score in scores.items()}
        total = sum(powers.values()) + math.exp(none - top)
        return {token: power / total for token, power in powers.items()}, math.exp(none - top) / total
