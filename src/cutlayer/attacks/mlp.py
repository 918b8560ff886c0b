"""Position-wise perceptron: hidden state in, embedding out, then fine-tuned to tell tokens apart.

Notation: N pairs, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from torch import nn
from torch.nn.functional import mse_loss

from cutlayer.attacks.attack import AttackCard, Reader, Threat, given
from cutlayer.attacks.inverter import Inverter, InverterReader, silent
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.training import Recipe, fit, hold_out, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


_REGRESSION: Final = 0.25
"""Share of the steps."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    width: Annotated[float, msgspec.Meta(gt=0, le=8)] = 1.0
    steps: Annotated[int, msgspec.Meta(ge=8, le=1_000_000)] = 800
    batch: Annotated[int, msgspec.Meta(ge=2, le=65_536)] = 512
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-3


def _network(size: int, width: float) -> nn.Sequential:
    """D → w → 2w → 2w → w → D, LayerNorm and ReLU after all but the last."""
    narrow, wide = round(width * size), round(2 * width * size)
    layers: list[nn.Module] = []
    before = size
    for after in (narrow, wide, wide, narrow):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, silent(nn.Linear(before, size)))


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    auxiliary = given(threat.auxiliary)
    with seeded(threat.seed, threat.device):
        inverter = Inverter(_network(auxiliary.released.shape[-1], options.width), threat)
        rows, ids = auxiliary.released.flatten(0, 1), auxiliary.ids.flatten()
        split = hold_out(len(auxiliary.ids)).pairs(auxiliary.ids.shape[1])

        def regression(pairs: torch.Tensor) -> torch.Tensor:
            targets = inverter.softmax.unit[ids[pairs].to(threat.device)]  # [B, D]
            return mse_loss(inverter(rows[pairs]), targets, reduction="sum") / len(pairs)

        def classification(pairs: torch.Tensor) -> torch.Tensor:
            return inverter.softmax.loss(inverter(rows[pairs]), ids[pairs].to(threat.device))

        first = round(_REGRESSION * options.steps)
        recipe = Recipe(first, options.batch, options.rate)
        fit(inverter, regression, split, recipe, lambda share: progress(_REGRESSION * share))
        rest = 1 - _REGRESSION
        recipe = recipe._replace(steps=options.steps - first)
        fit(inverter, classification, split, recipe, lambda share: progress(_REGRESSION + rest * share))
    return InverterReader(inverter, threat.channel)


ATTACK: Final = AttackKind(
    AttackCard(
        name="mlp",
        source="Learned classifiers for distributed inference (arXiv 2503.09291) and its code",
        threat_model=(
            "Owns text and can send it through the same cut and defence (the paper's unlimited queries); knows the public token "
            "table, no weights."
        ),
        needs=frozenset({"auxiliary", "embedding"}),
        parameters={
            "width": "first hidden layer in multiples of D; the second and third are twice as wide. The paper's is 4",
            "steps": "training steps, a quarter of them regression",
            "batch": "pairs per step",
            "rate": "highest learning rate",
        },
        deviations=(
            "Width 1 instead of 4 (a twelfth of the cost). The network corrects a ridge map instead of starting from nothing. "
            "The linear head over the vocabulary is replaced by the token table itself, with learned temperature and a learned "
            "weight of the token frequencies, trained by an importance-weighted sampled softmax. AdamW with cosine rate and "
            "early stopping on 5 % of the sequences."
        ),
        expected="Above 90 % with unlimited queries (published, Llama-3.2, Phi-3.5, GPT-2, BERT).",
    ),
    _Options,
    _prepare,
)
