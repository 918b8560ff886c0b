"""Nearest table row: the hidden state itself, compared with the raw embeddings (hidden embed inversion, "hotmap").

Notation: T positions, D hidden size, V vocabulary, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
import torch
from torch.nn.functional import normalize

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.table import Nearest, top_confidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.defences.channel import Channel

_SHOWN: Final = 64
_Metric = Literal["cosine", "l2"]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    metric: _Metric = "cosine"


class _NearestReader:
    def __init__(self, embedding: torch.Tensor, channel: Channel, metric: _Metric) -> None:
        self._table = embedding.detach().float()  # [V, D]
        self._channel = channel
        self._metric = metric

    def read(self, observation: Observation) -> Guess:
        best = self._nearest(observation, min(_SHOWN, len(self._table)))
        return Guess(best.tokens[:, 0].cpu(), top_confidence(best.cosine).cpu())

    def ranked(self, observation: Observation, count: int) -> torch.Tensor:
        return self._nearest(observation, count).tokens.cpu()

    def _nearest(self, observation: Observation, count: int) -> Nearest:
        rows = self._channel.estimate(observation.released).to(self._table)  # [T, D]
        if self._metric == "cosine":
            similarity = normalize(rows, dim=-1) @ normalize(self._table, dim=-1).T  # [T, V]
        else:
            # distances in units of the row's length, so that confidences compare between positions
            similarity = -torch.cdist(rows, self._table) / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        best = similarity.topk(count, dim=-1)
        return Nearest(best.values, best.indices)


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _NearestReader(given(threat.embedding).to(threat.device), threat.channel, options.metric)


ATTACK: Final = AttackKind(
    AttackCard(
        name="nearest",
        source="Hidden embed inversion (hotmap) of arXiv 2405.11916",
        threat_model="Knows the public token table; owns no text, no layers.",
        needs=frozenset({"embedding"}),
        parameters={"metric": "cosine or l2"},
        deviations="l2 is not in the source. Rows are not centred, as there.",
        expected="Useful at k ≤ 2 only (derived).",
    ),
    _Options,
    _prepare,
)
