"""Two directories of records, cell by cell: what changed, and whether by more than the choice of prompts explains.

Where both attacked the same prompts, differences are paired by prompt, which takes out how hard each prompt is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from cutlayer.audit.cell_record import PRIOR
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.audit.grid import Cell

_RESAMPLES: Final = 2000
_COLUMNS: Final = ("token_accuracy", "tokens", f"{PRIOR}token_accuracy")

Kind = Literal["both", "only in the first", "only in the second", "not measured in both"]


class Difference(NamedTuple):
    """One cell of two audits. Changes are second minus first."""

    cell: Cell
    kind: Kind
    paired: bool
    token_accuracy: Figure | None
    advantage: Figure | None

    @property
    def clear(self) -> bool:
        """Whether the interval of a change leaves out 0."""
        return any(
            figure is not None and (figure.low > 0 or figure.high < 0)
            for figure in (self.token_accuracy, self.advantage)
        )


class _Documents(NamedTuple):
    """Per prompt: tokens right, tokens the baseline got right, tokens in all, [N] each, summed over seeds."""

    names: list[tuple[str, float]]
    counts: npt.NDArray[np.float64]


def compare(first: Iterable[CellRecord], second: Iterable[CellRecord], seed: int = 0) -> list[Difference]:
    """Changes of every cell of either.

    Args:
        first: records of one directory.
        second: records of the other.
        seed: of the bootstrap.
    """
    before = {record.cell.key: record for record in first}
    after = {record.cell.key: record for record in second}
    return [_difference(before.get(key), after.get(key), seed) for key in dict.fromkeys((*before, *after))]


def _difference(first: CellRecord | None, second: CellRecord | None, seed: int) -> Difference:
    if first is None or second is None:
        record = first or second
        if record is None:
            raise ValueError("a difference of no records")
        kind: Kind = "only in the second" if first is None else "only in the first"
        return Difference(record.cell, kind, False, None, None)
    a, b = _documents(first), _documents(second)
    if a is None or b is None:
        return Difference(second.cell, "not measured in both", False, None, None)
    paired = a.names == b.names
    generator = np.random.default_rng(seed)
    draws_a = generator.integers(0, len(a.names), (_RESAMPLES, len(a.names)))
    draws_b = draws_a if paired else generator.integers(0, len(b.names), (_RESAMPLES, len(b.names)))
    n = min(len(a.names), len(b.names))
    changes = []
    for measure in (_accuracy, _advantage):
        value = measure(b.counts.sum(0)) - measure(a.counts.sum(0))
        resampled = measure(b.counts[draws_b].sum(1)) - measure(a.counts[draws_a].sum(1))  # [resamples]
        changes.append(_figure(value, resampled, n))
    return Difference(second.cell, "both", paired, *changes)


def _documents(record: CellRecord) -> _Documents | None:
    """Prompts in the order of their names; None without scores."""
    if not record.complete or not set(_COLUMNS) <= set(record.samples):
        return None
    summed: dict[str, list[float]] = {}
    columns: list[Sequence[float | None]] = [record.samples[name] for name in _COLUMNS]
    for name, right, tokens, before in zip(record.samples["id"], *columns, strict=True):
        if right is None or tokens is None or before is None:
            continue
        total = summed.setdefault(name, [0.0, 0.0, 0.0])
        for i, value in enumerate((right * tokens, before * tokens, tokens)):
            total[i] += value
    if not summed:
        return None
    seeds = len(record.config.seeds)
    names = sorted(summed)
    return _Documents([(name, summed[name][2] / seeds) for name in names], np.array([summed[name] for name in names]))


def _accuracy(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return counts[..., 0] / counts[..., 2]


def _advantage(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts[..., 0] - counts[..., 1]) / (counts[..., 2] - counts[..., 1])


def _figure(value: npt.NDArray[np.float64], resampled: npt.NDArray[np.float64], n: int) -> Figure | None:
    kept = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(kept):
        return None
    low, high = np.quantile(kept, [0.025, 0.975])
    return Figure(float(value), float(low), float(high), n, "change")
