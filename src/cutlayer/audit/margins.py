"""Margin map: how far other tokens' hidden states lie from the true one's, given the true prefix.

    margins = margin_map(head, prefix=[5, 6], token=7, depths=[1, 4])
    margins[0].nearest / margins[0].norm

This is the search counterpart of PAF: noise of standard deviation s per coordinate makes a search confuse the truth with a
competitor at distance Δ with probability Q(Δ / 2s), Q the normal tail; no noise below Δ / 8 matters to a vocabulary of
49,152 even if all tokens sat at the nearest one's distance (derived).

Footguns: without `full` the nearest competitor is looked for among the token table's nearest neighbours and a random sample,
so `nearest` is an upper bound of the margin; quantiles are over the random sample alone. Sliding windows are not applied.

Notation: t tokens of prefix, C candidates, D hidden size, V vocabulary, d depths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cutlayer.attacks.tree import TreeForward
from cutlayer.audit.depths import checked_depths, layer_outputs
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cutlayer.models.parts import Head


class Margin(NamedTuple):
    """Distances from one hidden state to those of other tokens at its place."""

    depth: int
    norm: float
    """L2 norm of the true state."""
    nearest: float
    """Δ, the smallest distance seen."""
    competitor: int
    """The token at that distance."""
    sampled: torch.Tensor
    """[C] distances of the tokens that stand for the vocabulary: all others if `full`, else the random sample."""

    def quantile(self, q: float) -> float:
        """The q-quantile of the distances over the vocabulary, or its sample."""
        return float(torch.quantile(self.sampled, q))


def margin_map(
    head: Head,
    prefix: Sequence[int],
    token: int,
    depths: Sequence[int] | None = None,
    *,
    full: bool = False,
    neighbours: int = 128,
    sample: int = 1024,
    seed: int = 0,
) -> list[Margin]:
    """Margins of one token at several depths, in their order.

    Args:
        head: the client's layers.
        prefix: what stands before; may be empty.
        token: the true token.
        depths: numbers of layers; None is all of them.
        full: look at all V tokens.
        neighbours: else at so many of the token table's nearest rows,
        sample: and at so many tokens drawn at random.
        seed: of the draw.

    Raises:
        InputError: a depth the head does not reach, or nothing to compare with.
    """
    chosen = checked_depths(head, depths)
    size = len(head.embedding())
    if full:
        near, drawn = torch.empty(0, dtype=torch.long), torch.arange(size)
    else:
        near = nearest_rows(head.embedding(), token, min(neighbours, size - 1))
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:sample]
    drawn = drawn[drawn != token]
    if not len(drawn):
        raise InputError(
            f"a margin needs competitors to token {token}: sample more than {sample}, or take the full vocabulary"
        )
    candidates = torch.cat([near, drawn])  # [C]
    parts: list[torch.Tensor] = []
    truth = torch.empty(0)
    for states in candidate_states(head, prefix, [token, *candidates.tolist()], chosen):  # [d, B, D]
        if not parts:
            truth = states[:, :1]  # [d, 1, D]
        parts.append((states - truth).norm(dim=-1))  # [d, B]
    distances = torch.cat(parts, 1)[:, 1:]  # [d, C]
    best = distances.argmin(1)  # [d]
    return [
        Margin(
            depth=depth,
            norm=float(truth[row, 0].norm()),
            nearest=float(distances[row, best[row]]),
            competitor=int(candidates[best[row]]),
            sampled=distances[row, len(near) :],
        )
        for row, depth in enumerate(chosen)
    ]


def candidate_states(
    head: Head, prefix: Sequence[int], candidates: Sequence[int], depths: Sequence[int], batch: int = 256
) -> Iterator[torch.Tensor]:
    """Hidden states F(v; π) of candidates v after the prefix π, batch by batch, [d, B, D].

    Args:
        head: the client's layers.
        prefix: t tokens.
        candidates: token ids.
        depths: numbers of layers.
        batch: B, at most.
    """
    tree = TreeForward(head)
    if prefix:
        tree.extend(prefix, range(-1, len(prefix) - 1))
    for start in range(0, len(candidates), batch):
        some = candidates[start : start + batch]
        with layer_outputs(head) as outputs:
            tree.extend(some, [len(prefix) - 1] * len(some))
        tree.keep(range(len(prefix)))
        yield torch.stack([outputs[depth - 1][0] for depth in depths])


def nearest_rows(table: torch.Tensor, token: int, count: int) -> torch.Tensor:
    """The `count` other tokens whose embeddings [V, D] lie nearest to a token's, nearest first."""
    distance = (table - table[token]).square().sum(-1)  # [V]
    distance[token] = torch.inf
    return distance.topk(count, largest=False).indices
