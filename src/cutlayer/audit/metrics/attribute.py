"""Metrics of attribute inference: a label per document instead of its tokens.

Notation: n documents, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cutlayer.audit.metrics.advantage import advantage
from cutlayer.audit.metrics.documents import TAILS, resamples, spread
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence


def balanced_accuracy(truth: Sequence[str], guess: Sequence[str], seed: int = 0) -> Figure | Unmeasured:
    """Mean over the classes in the truth of the share read right; 1/K is chance.

    The interval resamples documents within their class, so that none is lost.

    Args:
        truth: [n] labels.
        guess: [n] labels.
        seed: of the resampling.

    Raises:
        InputError: lengths differ.
    """
    right = _right(truth, guess)
    classes = sorted(set(truth))
    if len(classes) < 2:
        return Unmeasured("the documents are all of one class")
    members = [right[[label == name for label in truth]] for name in classes]
    value = float(np.mean([values.mean() for values in members]))
    if np.ptp(right) == 0:
        low, high = spread(right, np.ones(len(right)), seed)
    else:
        recalls = [resamples(len(values), seed + i) @ values / len(values) for i, values in enumerate(members)]
        low, high = (float(bound) for bound in np.quantile(np.mean(recalls, axis=0), TAILS))
    return Figure(value, low, high, len(right), "fraction")


def attribute_advantage(
    truth: Sequence[str], guess: Sequence[str], majority: str, seed: int = 0
) -> Figure | Unmeasured:
    """Accuracy beyond that of always answering `majority`, as `advantage`.

    Args:
        truth: [n] labels.
        guess: [n] labels.
        majority: the most frequent label of the text the attacker learnt from, its best answer without looking.
        seed: of the resampling.

    Raises:
        InputError: lengths differ.
    """
    return advantage(_right(truth, guess).tolist(), [float(label == majority) for label in truth], seed=seed)


def _right(truth: Sequence[str], guess: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if len(truth) != len(guess):
        raise InputError(f"{len(guess)} guesses for {len(truth)} documents; give one each")
    return np.array([a == b for a, b in zip(truth, guess, strict=True)], dtype=np.float64)
