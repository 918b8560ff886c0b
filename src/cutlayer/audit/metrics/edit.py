"""Levenshtein distance over tokens: how many insertions, deletions and substitutions lead from the guess to the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Sequence


def edit_distance(truth: Sequence[int], guess: Sequence[int]) -> float | Unmeasured:
    """Distance over the truth's length T: 0 is everything read; a guess longer than the truth may exceed 1."""
    from rapidfuzz.distance import Levenshtein

    if not truth:
        return Unmeasured("no tokens but special ones")
    return Levenshtein.distance(list(truth), list(guess)) / len(truth)
