"""Means over documents with their intervals. Documents are resampled, not tokens: tokens of one text fall together.

Where all documents score the same, resampling has nothing to vary and would claim certainty from any number of them. The
interval is then Wilson's: the widest that a mean of values in [0, 1] can have.

Notation: n documents, R resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, proportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RESAMPLES: Final = 2000
TAILS: Final = (0.025, 0.975)


def over_documents(
    values: Sequence[float | None], weights: Sequence[float] | None = None, seed: int = 0, unit: str = "fraction"
) -> Figure | Unmeasured:
    """Mean of one value in [0, 1] per document, with a 95 % percentile-bootstrap interval over documents.

    Args:
        values: [n]; None where a document has none, which is left out.
        weights: [n], e.g. its tokens for a mean over all tokens; None weighs documents alike.
        seed: of the resampling.
        unit: of the figure.

    Raises:
        InputError: lengths differ, or something is negative, above 1 or not finite.
    """
    data, share = measured(values, weights)
    if not share.sum():
        return Unmeasured("no document has a value")
    mean = float(data @ share / share.sum())
    low, high = spread(data, share, seed)
    return Figure(mean, low, high, len(data), unit)


def measured(values: Sequence[float | None], weights: Sequence[float] | None = None) -> tuple[Array, Array]:
    """Values that are there, and their weights.

    Raises:
        InputError: see `over_documents`.
    """
    share = [1.0] * len(values) if weights is None else list(weights)
    if len(share) != len(values):
        raise InputError(f"{len(share)} weights for {len(values)} documents; give one each")
    pairs = [(value, weight) for value, weight in zip(values, share, strict=True) if value is not None and weight != 0]
    data, kept = (
        (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)) if pairs else (np.empty(0),) * 2
    )
    if not (np.all((data >= 0) & (data <= 1)) and np.all((kept > 0) & np.isfinite(kept))):
        raise InputError("values of documents must be in [0, 1] and weights positive and finite")
    return data, kept


def spread(data: Array, share: Array, seed: int) -> tuple[float, float]:
    """95 % interval of the weighted mean of n values in [0, 1]."""
    if np.ptp(data) == 0:
        widest = proportion(data[0] * len(data), len(data))
        return widest.low, widest.high
    counts = resamples(len(data), seed)  # [R, n]
    low, high = np.quantile(counts @ (data * share) / (counts @ share), TAILS)
    return float(low), float(high)


def resamples(n: int, seed: int) -> Array:
    """How often each document is drawn, [R, n]."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
