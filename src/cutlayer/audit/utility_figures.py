"""What a defence costs on the very prompts that are attacked, as figures of a record.

Losses are summed over all tokens; intervals resample prompts, and defended and undefended face the same ones.

Notation: n prompts, R resamples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cutlayer.audit.metrics.documents import TAILS, resamples
from cutlayer.audit.scoring import Outcome
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cutlayer.audit.scene import Scene
    from cutlayer.audit.utility import Utility

_MOST: Final = 100
"""Prompts measured: undefended distributions are kept in memory for the next defence."""


def utility_outcome(utility: Utility, scene: Scene, prompts: Sequence[Sequence[int]]) -> Outcome:
    """Perplexity, its relative increase, and how far next-token distributions move.

    Args:
        utility: the rest of the model.
        scene: cut and defence.
        prompts: token ids; the first hundred with something to predict are measured.

    Raises:
        InputError: no prompt has two tokens.
    """
    predictable = [list(ids) for ids in prompts if len(ids) > 1][:_MOST]
    measured = [utility.measure(scene, torch.tensor([ids])) for ids in predictable]
    if not measured:
        raise InputError("perplexity needs a prompt of at least two tokens")
    n = np.array([one.tokens for one in measured], dtype=np.float64)
    loss = np.array([math.log(one.perplexity) for one in measured]) * n
    before = np.array([math.log(one.undefended_perplexity) for one in measured]) * n
    kl = np.array([one.kl for one in measured]) * n
    agreement = np.array([one.agreement for one in measured]) * n
    return Outcome(
        {
            "perplexity": _figure(loss, n, np.exp, "perplexity"),
            "perplexity_increase": _figure(loss - before, n, np.expm1, "fraction"),
            "kl": _figure(kl, n, np.asarray, "nats"),
            "agreement": _figure(agreement, n, np.asarray, "fraction"),
        },
        {},
    )


def _figure(sums: NDArray[np.float64], tokens: NDArray[np.float64], of: Callable[[Any], Any], unit: str) -> Figure:
    """A function of the mean over tokens, with its interval over prompts."""
    counts = resamples(len(sums), 0)  # [R, n]
    low, high = np.quantile(of(counts @ sums / (counts @ tokens)), TAILS)
    return Figure(float(of(sums.sum() / tokens.sum())), float(low), float(high), len(sums), unit)
