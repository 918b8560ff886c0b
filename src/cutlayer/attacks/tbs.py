"""Token-basis selection: matching by gradient descent on coordinates in the table's own basis.

E = U S Vᵀ. Optimised are coefficients z; the embedding is e = s (5/π) atan(z) Vᵀ, so that every coefficient stays within
±2.5 s. It is a rotation and a box: it helps the optimiser, it does not make more identifiable.

Notation: B prompts, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch

from cutlayer.attacks.attack import AttackCard, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.matching import EmbeddingForward, RowLookup, cosine_distance, squared_error
from cutlayer.attacks.matching_reader import Count, MatchingReader, Setting
from cutlayer.attacks.table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.descent import Moment

_GAIN: Final = 5 / math.pi
_BOUND: Final = 2.5
"""(5/π) atan(∞)"""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    steps: Count = 3000
    rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.04
    loss: Literal["mse", "cosine"] = "mse"
    batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16


class _Recipe:
    """See `Recipe`.

    Args:
        table: [V, D].
        options: as given.
    """

    def __init__(self, table: torch.Tensor, options: _Options) -> None:
        self._basis = torch.linalg.eigh(table.T @ table).eigenvectors.flip(-1)  # [D, D]: V, largest first
        coefficients = table @ self._basis  # [V, D]
        self._scale = float(coefficients.abs().max()) / _BOUND
        typical = float(coefficients.square().mean().sqrt()) / (self._scale * _GAIN)
        self._rate = options.rate * typical
        self._loss = options.loss

    def start(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Recipe.start`."""
        return torch.full_like(rows, 1 / rows.shape[-1])

    def embeddings(self, variable: torch.Tensor) -> torch.Tensor:
        """See `Recipe.embeddings`."""
        embeddings: torch.Tensor = self._scale * _GAIN * torch.atan(variable) @ self._basis.T
        return embeddings

    def loss(self, moment: Moment) -> torch.Tensor:
        """See `Recipe.loss`."""
        measure = cosine_distance if self._loss == "cosine" else squared_error
        return (moment.targets.weight * measure(moment.states, moment.targets)).sum()

    def project(self, variable: torch.Tensor) -> None:
        """See `Recipe.project`; the arc tangent bounds it."""

    def optimiser(self, variables: list[torch.Tensor]) -> torch.optim.Optimizer:
        """See `Recipe.optimiser`."""
        return torch.optim.AdamW(variables, lr=self._rate)

    def rate(self, share: float) -> float:
        """See `Recipe.rate`."""
        return 1.0


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    head = given(threat.head)
    forward = EmbeddingForward(head)
    setting = Setting(head, forward, RowLookup(TokenTable(forward.table)), threat.channel)
    recipe = _Recipe(forward.table.float(), options)
    progress(1.0)
    return MatchingReader(setting, recipe, [options.steps], None, options.batch)


ATTACK: Final = AttackKind(
    AttackCard(
        name="tbs",
        source="Token-basis selection: Dong et al., USENIX Security 2025 (arXiv 2507.16372), white-box attack on deep cuts",
        threat_model="Knows the layers up to the cut, the token table, the number of tokens; no text, no language model, no key.",
        needs=frozenset({"head"}),
        parameters={
            "steps": "of AdamW; published 50,000",
            "rate": "first step as a multiple of a typical coefficient of the table",
            "loss": "mse (published) or cosine",
            "batch": "prompts optimised at once",
        },
        deviations=(
            "The published box of ±2.5 and learning rate of 1e-4 to 5e-4 belong to Llama's table. Here the box just holds "
            "every coefficient of the table, and 0.04 typical coefficients is what 5e-4 comes to if Llama's are around 0.02, "
            "which is assumed. 3,000 steps in place of 50,000. None of the optional penalties on z. Attention sinks weigh "
            "0.1. Cosines with the table are about its mean. A prompt whose guess explains everything stops early."
        ),
        expected="Published (abstract): 86.88 F1 on a prompt of 4,112 tokens from Llama-3's middle layer; order is not counted.",
    ),
    _Options,
    _prepare,
)
