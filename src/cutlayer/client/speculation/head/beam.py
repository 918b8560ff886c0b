"""A tree of guesses from a network, grown level by level: the most likely nodes of a level are gone on from together.

After EAGLE-2 (arXiv 2406.16858), whose confidences are the head's own probabilities. One call of the network per level, whatever
the tree's breadth: on a processor a call costs mostly the reading of weights.

Notation: N nodes of a level, R tokens of the head's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.client.speculation.draft import ROOT, Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

_FLOOR: Final = 0.05
"""Chance of being reached below which no node is gone on from: its children would not pay for the call."""


class Node(NamedTuple):
    """A guess."""

    token: int
    parent: int
    chance: float
    """That it is right if its parent is."""
    worth: float
    """That it and all before it are right."""


def grow(
    logits: torch.Tensor,
    vocabulary: torch.Tensor,
    advance: Callable[[Sequence[tuple[int, int]]], torch.Tensor],
    most: int,
    breadth: int,
    depth: int,
) -> Draft:
    """The most likely guesses.

    Args:
        logits: [R], of what follows the last known token.
        vocabulary: [R], token ids of the logits.
        advance: what was gone on from, (token, row in the level before) each → logits [N, R] after them. It is called once per
            level; before the first the only row is the last known token's.
        most: nodes returned.
        breadth: nodes of a level that are gone on from, and guesses considered after each.
        depth: levels.
    """
    nodes: list[Node] = []
    level, worths = [ROOT], [1.0]
    rows = logits[None]  # [N, R]
    for left in range(depth, 0, -1):
        best = rows.softmax(-1).topk(min(breadth, rows.shape[1]))
        tokens = vocabulary[best.indices].tolist()
        found = [
            (Node(token, level[row], chance, worths[row] * chance), row)
            for row, guesses in enumerate(zip(tokens, best.values.tolist(), strict=True))
            for token, chance in zip(*guesses, strict=True)
            if chance > 0
        ]
        found.sort(key=lambda pair: -pair[0].worth)
        first = len(nodes)
        nodes += [node for node, _ in found]
        on = [(at, node, row) for at, (node, row) in enumerate(found[:breadth]) if node.worth >= _FLOOR]
        if left == 1 or not on:
            break
        level, worths = [first + at for at, _, _ in on], [node.worth for _, node, _ in on]
        rows = advance([(node.token, row) for _, node, row in on])
    draft = Draft(*(tuple(column) for column in zip(*(node[:3] for node in nodes), strict=True)))
    return draft.ranked().first(most)
