"""Are hidden states rows of the embedding matrix? Nearest neighbour by cosine over the whole vocabulary, in blocks.

Notation: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK_ROWS: Final = 8192
"""Rows of the matrix normalised at a time: a 128,000 × 4096 matrix in float32 would not fit beside the model."""


class Neighbours(NamedTuple):
    """The nearest embedding row of each hidden state."""

    cosine: torch.Tensor
    """[N]"""
    token: torch.Tensor
    """[N], its id."""


def nearest_embeddings(rows: torch.Tensor, embedding: torch.Tensor) -> Neighbours:
    """Nearest rows of `embedding` [V, D] to `rows` [N, D], by cosine similarity.

    Raises:
        InputError: no rows, or of another width.
    """
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != embedding.shape[1]:
        raise InputError(f"rows {tuple(rows.shape)} cannot be compared with an embedding {tuple(embedding.shape)}")
    unit = torch.nn.functional.normalize(rows.to(embedding.device, torch.float32), dim=-1)  # [N, D]
    cosine = torch.full((len(rows),), -torch.inf, device=embedding.device)  # [N]
    token = torch.zeros(len(rows), dtype=torch.long, device=embedding.device)  # [N]
    for start in range(0, len(embedding), _BLOCK_ROWS):
        block = torch.nn.functional.normalize(embedding[start : start + _BLOCK_ROWS].float(), dim=-1)  # [≤ block, D]
        best, index = (unit @ block.T).max(dim=-1)  # [N]
        better = best > cosine
        cosine = torch.where(better, best, cosine)
        token = torch.where(better, index + start, token)
    return Neighbours(cosine.cpu(), token.cpu())


def share_identified(tokens: torch.Tensor, truth: Sequence[int]) -> float:
    """Share of positions whose nearest embedding is that of the very token there.

    Raises:
        InputError: no positions, or not one token for each.
    """
    if not len(truth) or len(truth) != len(tokens):
        raise InputError(f"{len(tokens)} neighbours cannot be compared with {len(truth)} tokens")
    return float((tokens == torch.tensor(truth)).float().mean())
