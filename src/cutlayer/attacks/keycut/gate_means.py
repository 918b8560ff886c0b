"""A1, gate invariants: the mean over channels of what an id sends through a gate, which no permutation of channels changes.

Notation: V vocabulary, N asked ids, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.matching import closest
from cutlayer.attacks.kind import AttackKind, NoOptions
from cutlayer.obfuscation.layout import Role

if TYPE_CHECKING:
    from cutlayer.attacks.keycut.weights import Weights


class _Reader:
    def __init__(self, base: Weights) -> None:
        means = _means(base)  # [V, L]
        self._spread = means.std(0).clamp_min(1e-30)
        self._table = means / self._spread

    def read(self, held: Held) -> Claim | NoClaim:
        match = closest(_means(held.export)[held.asked] / self._spread, self._table)
        return Claim(held.asked, match.best, {"lead": float(match.margin.mean())})


def _means(weights: Weights) -> torch.Tensor:
    """[V, L]"""
    gates = [weights.rows(Role.GATE, layer).mean(0) for layer in range(weights.layers)]
    return weights.embedding() @ torch.stack(gates, 1)


def _prepare(options: NoOptions, public: Public) -> Reader:
    return _Reader(given(public.base))


ATTACK: Final = AttackKind(
    Card(
        name="gate-means",
        label="A1",
        source="The gate-invariant attack of arXiv 2603.01499 (Gate-IA)",
        needs=frozenset({"base"}),
        parameters={},
        facts={"lead": "half the difference of squared distances between the second best and the named id"},
        deviations="Every layer's gate gives one value, divided by its deviation over the vocabulary; all values count alike.",
        expected="All ids without noise; paper: 6 % at (1.0, 0.2).",
    ),
    NoOptions,
    _prepare,
)
