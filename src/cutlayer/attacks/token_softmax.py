"""Queries against the token table: a softmax over the whole vocabulary that is affordable to train.

log p(v | q) ∝ s·⟨q, u_v⟩ + w·log f_v: u_v the centred unit row of token v, f_v its smoothed frequency in the attacker's own
text, s and w learned. The length of q is not normalised away, so an inverter can say how sure it is at each position; w lets
common tokens win where the hidden state says little. Tokens never seen in training stay reachable.

Training sums over a sample of the vocabulary: the types of the batch and random ones, each weighted by one over the
probability that it was drawn (Horvitz–Thompson), so that the sum estimates the one over all V. Reading is always over all V.

Notation: B queries, D hidden size, V vocabulary, C sampled types.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from cutlayer.attacks.table import TokenTable

_NEGATIVES: Final = 1024
"""Random types drawn per batch."""
_INITIAL_SCALE: Final = 16.0


class TokenSoftmax(nn.Module):
    """Scores queries.

    Args:
        table: the token table.
        ids: the attacker's text, any shape; its frequencies are used.
    """

    unit: torch.Tensor
    """[V, D]"""
    frequency: torch.Tensor
    """[V], add-one smoothed, of sum 1."""

    def __init__(self, table: TokenTable, ids: torch.Tensor) -> None:
        super().__init__()
        size = len(table.centred)
        counts = torch.bincount(ids.flatten().to(table.centred.device), minlength=size).float() + 1
        self.register_buffer("unit", normalize(table.centred, dim=-1), persistent=False)
        self.register_buffer("frequency", counts / counts.sum(), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE)))
        self.frequency_weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """log p(token | query), [B, V], of queries [B, D]."""
        return torch.log_softmax(self._scores(queries, slice(None)), dim=-1)

    def loss(self, queries: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of queries [B, D] and their true tokens [B], estimated on a sample of types."""
        size, batch = len(self.unit), len(ids)
        if _NEGATIVES + batch >= size:
            return cross_entropy(self._scores(queries, slice(None)), ids)
        drawn = torch.randint(size, (_NEGATIVES,), device=ids.device)
        types, places = torch.unique(torch.cat([ids, drawn]), return_inverse=True)  # [C], [B + negatives]
        own = places[:batch, None]  # [B, 1]
        missed = batch * torch.log1p(-self.frequency[types]) + _NEGATIVES * math.log1p(-1 / size)
        weight = torch.log(-torch.expm1(missed))  # [C], log of the probability of being drawn
        scores = self._scores(queries, types) - weight  # [B, C]
        # the true token is in its own sum with certainty
        return cross_entropy(scores.scatter_add(1, own, weight[own]), own[:, 0])

    def _scores(self, queries: torch.Tensor, types: torch.Tensor | slice) -> torch.Tensor:
        scores: torch.Tensor = self.log_scale.exp() * queries @ self.unit[types].T
        return scores + self.frequency_weight * self.frequency[types].log()
