"""Growing a tree of guesses best first: always under the node most likely to be reached.

After EAGLE-2's context-aware tree (arXiv 2406.16858), with whatever says what may follow in place of a draft model.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.draft import ROOT, Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Proposals = Iterable[tuple[int, float]]

HORIZON: Final = 32
"""Tokens of context that decide what may follow."""
_FLOOR: Final = 2e-3
"""Chance of being reached below which no node pays for its bytes."""


def grow(ids: Sequence[int], propose: Callable[[tuple[int, ...]], Proposals], most: int) -> Draft:
    """The most valuable tree of at most `most` nodes.

    Args:
        ids: prompt and answer so far.
        propose: the last `HORIZON` tokens → distinct tokens that may follow, each with its chance in (0, 1].
        most: nodes.

    Returns:
        Nodes, most valuable first.
    """
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    # A child is never worth more than its parent, so popping the best keeps parents first.
    frontier: list[tuple[float, int, int, float, tuple[int, ...]]] = []
    worth, node, context = 1.0, ROOT, tuple(ids[-HORIZON:])
    while len(tokens) < most:
        for token, chance in propose(context):
            if worth * chance >= _FLOOR:
                heapq.heappush(frontier, (-worth * chance, node, token, chance, context))
        if not frontier:
            break
        negative, parent, token, chance, context = heapq.heappop(frontier)
        worth, node, context = -negative, len(tokens), (*context[1 - HORIZON :], token)
        tokens.append(token)
        parents.append(parent)
        chances.append(chance)
    return Draft(tuple(tokens), tuple(parents), tuple(chances))
