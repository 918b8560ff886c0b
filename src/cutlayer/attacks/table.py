"""Vectors against the token table: which tokens lie nearest.

Notation: N vectors, D hidden size, V vocabulary, K neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import normalize


class Nearest(NamedTuple):
    """The K most similar tokens of each vector, best first."""

    cosine: torch.Tensor
    """[N, K]"""
    tokens: torch.Tensor
    """[N, K]"""


class TokenTable:
    """The rows of an embedding matrix as unit vectors about their mean.

    Centring matters: rows of trained tables share a large common component, which would make all cosines alike.

    Args:
        embedding: [V, D].
    """

    def __init__(self, embedding: torch.Tensor) -> None:
        table = embedding.detach().float()
        self.mean = table.mean(0)  # [D]
        self.centred = table - self.mean  # [V, D]
        self._unit = normalize(self.centred, dim=-1)  # [V, D]

    def similarity(self, vectors: torch.Tensor) -> torch.Tensor:
        """Cosine of centred vectors [N, D] with every token, [N, V]."""
        return normalize(vectors, dim=-1) @ self._unit.T

    def nearest(self, vectors: torch.Tensor, count: int = 1) -> Nearest:
        """The `count` most similar tokens of centred vectors [N, D]."""
        best = self.similarity(vectors).topk(count, dim=-1)
        return Nearest(best.values, best.indices)


def top_confidence(similarity: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """Confidence in the best of K similarities [N, K], best first: its share of a softmax, [N]."""
    return torch.softmax(similarity / temperature, dim=-1)[:, 0]
