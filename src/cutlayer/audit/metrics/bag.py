"""Metrics that ignore order: which tokens were found, wherever.

Precision and recall count copies: a token guessed five times that occurs once is found once. The set version, the "token
accuracy" of some papers, counts neither copies nor order and is the kindest of all to an attack.

Special and padding tokens count on neither side.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def bag_precision(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """Multiset overlap over the length of the guess.

    Examples:
        >>> bag_precision([1, 2, 3], [1, 1, 1, 1])
        0.25
    """
    guessed = _bag(guess, special).total()
    return (
        _overlap(truth, guess, special) / guessed if guessed else Unmeasured("the guess has no tokens but special ones")
    )


def bag_recall(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """Multiset overlap over the length of the truth."""
    there = _bag(truth, special).total()
    return _overlap(truth, guess, special) / there if there else Unmeasured("no tokens but special ones")


def token_set_f1(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """F1 of the sets of distinct tokens.

    Examples:
        >>> token_set_f1([1, 2, 3], [3, 3, 2, 4])
        0.6666666666666666
    """
    there, guessed = set(_bag(truth, special)), set(_bag(guess, special))
    if not there:
        return Unmeasured("no tokens but special ones")
    return 2 * len(there & guessed) / (len(there) + len(guessed))


def _bag(ids: Sequence[int], special: Collection[int]) -> Counter[int]:
    return Counter(token for token in ids if token not in special)


def _overlap(truth: Sequence[int], guess: Sequence[int], special: Collection[int]) -> int:
    return (_bag(truth, special) & _bag(guess, special)).total()
