"""Figures of many prompts: every metric over documents, and the advantages over the baseline.

Accuracies are pooled over tokens (a long prompt weighs more), everything else is averaged over texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.audit.metrics.advantage import advantage
from cutlayer.audit.metrics.documents import over_documents
from cutlayer.audit.metrics.scores import SampleScores
from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.records.record import Figure

_WEIGHTS: Final = {"token_accuracy": "tokens", "edit_distance": "tokens", "content_accuracy": "content_tokens"}
METRICS: Final = tuple(
    name for name in SampleScores.__struct_fields__ if name not in ("tokens", "content_tokens", "reasons")
)


def summarise(samples: Sequence[SampleScores], seed: int = 0) -> dict[str, Figure | Unmeasured]:
    """Metric → figure over documents. Where no text has a metric, the reason most of them give.

    Args:
        samples: one per document.
        seed: of the resampling.
    """
    return {name: _figure(samples, name, seed) for name in METRICS}


def advantages(
    samples: Sequence[SampleScores], prior: Sequence[SampleScores], seed: int = 0
) -> dict[str, Figure | Unmeasured]:
    """Metric → its advantage over the baseline, paired by document; not of `edit_distance`, where less is better.

    Args:
        samples: the attack's, one per document.
        prior: the baseline's, of the same documents in the same order.
        seed: of the resampling.

    Raises:
        InputError: lengths differ.
    """
    names = [name for name in METRICS if name != "edit_distance"]
    return {
        name: advantage(_column(samples, name), _column(prior, name), _weights(samples, name), seed) for name in names
    }


def _figure(samples: Sequence[SampleScores], name: str, seed: int) -> Figure | Unmeasured:
    figure = over_documents(_column(samples, name), _weights(samples, name), seed)
    given = [sample.reasons[name] for sample in samples if name in sample.reasons]
    if isinstance(figure, Unmeasured) and given:
        return Unmeasured(max(given, key=given.count))
    return figure


def _column(samples: Sequence[SampleScores], name: str) -> list[float | None]:
    return [getattr(sample, name) for sample in samples]


def _weights(samples: Sequence[SampleScores], name: str) -> list[float] | None:
    return [getattr(sample, _WEIGHTS[name]) for sample in samples] if name in _WEIGHTS else None
