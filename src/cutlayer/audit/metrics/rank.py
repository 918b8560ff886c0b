"""Spearman's rank correlation: does one number order things as another does?

Notation: n pairs, r the correlation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FEWEST: Final = 4


def spearman(x: Sequence[float], y: Sequence[float]) -> Figure | Unmeasured:
    """Correlation of ranks, ties sharing their mean rank, with a 95 % interval.

    The interval is Fisher's with the variance (1 + r²/2)/(n − 3) of Bonett and Wright (2000). At r = ±1, where it would have
    no width, it is that of ranks one swap of neighbours away, r = ±(1 − 12/(n³ − n)).

    Args:
        x: [n].
        y: [n].

    Raises:
        InputError: lengths differ, or a value is not finite.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"a rank correlation of {first.size} with {second.size} values; give pairs")
    if not np.all(np.isfinite(first) & np.isfinite(second)):
        raise InputError("a rank correlation of values that are not finite; leave those pairs out")
    n = len(first)
    if n < _FEWEST:
        return Unmeasured(f"{n} pairs; an interval needs {_FEWEST}")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return Unmeasured("one of the two does not vary")
    r = float(np.clip(np.corrcoef(_ranks(first), _ranks(second))[0, 1], -1, 1))
    furthest = 1 - 12 / (n**3 - n)
    centre = np.arctanh(np.clip(r, -furthest, furthest))
    half = 1.959964 * np.sqrt((1 + r * r / 2) / (n - 3))
    return Figure(r, min(r, float(np.tanh(centre - half))), max(r, float(np.tanh(centre + half))), n, "correlation")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks 1 … n; equal values share their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[group]
