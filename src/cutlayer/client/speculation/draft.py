"""A tree of guesses under the last known token.

Nodes are numbered so that a parent comes before its children; the parent of a first guess is `ROOT`. A chain is a tree of
width one. Sources of guesses rate each node by the chance that it is right if its parent is; what a node is worth to a round
trip is the product along its path.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

ROOT: Final = -1
"""Parent of the first guesses: the last token known."""


class Draft(NamedTuple):
    """Guesses, [N] each."""

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    chances: Sequence[float] = ()
    """Of being right if the parent is, in (0, 1]."""
    laws: Sequence[torch.Tensor | None] = ()
    """The distribution [V] a guess was drawn from, where it was drawn; none for guesses that were simply named. Empty: none of
    them was drawn. A guess that was drawn may be taken for one that was named, but not the other way round."""

    @classmethod
    def chain(cls, tokens: Sequence[int], chances: Sequence[float]) -> Draft:
        """One guess after the other."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(chances))

    def __len__(self) -> int:
        return len(self.tokens)

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def worth(self) -> list[float]:
        """The chance of each node that it and all before it on its path are right."""
        worth: list[float] = []
        for parent, chance in zip(self.parents, self.chances, strict=True):
            worth.append(chance * (worth[parent] if parent >= 0 else 1.0))
        return worth

    def ranked(self) -> Draft:
        """The same nodes, most valuable first; the first n of them are the best tree of n."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        worth = self.worth()
        # A child is never worth more than its parent, so taking the best of the frontier keeps parents first.
        frontier = [(-worth[node], node) for node in children.get(ROOT, ())]
        heapq.heapify(frontier)
        order: list[int] = []
        while frontier:
            _, node = heapq.heappop(frontier)
            order.append(node)
            for child in children.get(node, ()):
                heapq.heappush(frontier, (-worth[child], child))
        return self._only(order)

    def first(self, count: int) -> Draft:
        """The first `count` nodes, which hold their own parents."""
        return Draft(self.tokens[:count], self.parents[:count], self.chances[:count], self.laws[:count])

    def within(self, depth: int) -> Draft:
        """The nodes that are at most `depth` tokens after the last known one."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        if max(depths, default=0) <= depth:
            return self
        kept = [node for node, at in enumerate(depths) if at <= depth]
        return self._only(kept)

    def child(self, node: int, token: int) -> int | None:
        """The node that guesses `token` after `node`, if there is one."""
        pairs = zip(self.parents, self.tokens, strict=True)
        return next((index for index, pair in enumerate(pairs) if pair == (node, token)), None)

    def drawn(self, node: int) -> list[tuple[int, torch.Tensor]]:
        """The guesses after `node` that were drawn, in order, and what from."""
        return [
            (token, law)
            for parent, token, law in zip(self.parents, self.tokens, self.laws, strict=False)
            if parent == node and law is not None
        ]

    def _only(self, nodes: Sequence[int]) -> Draft:
        """These nodes in this order, which has parents first."""
        place = {ROOT: ROOT} | {node: i for i, node in enumerate(nodes)}
        return Draft(
            tuple(self.tokens[node] for node in nodes),
            tuple(place[self.parents[node]] for node in nodes),
            tuple(self.chances[node] for node in nodes),
            tuple(self.laws[node] for node in nodes) if self.laws else (),
        )


def merged(drafts: Iterable[Draft]) -> Draft:
    """One tree with the nodes of all, named; of two sources that guess the same, the more confident one's chance."""
    index: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    for draft in drafts:
        place = {ROOT: ROOT}
        for node, (token, parent, chance) in enumerate(zip(*draft[:3], strict=True)):
            key = place[parent], token
            if key not in index:
                index[key] = len(tokens)
                tokens.append(token)
                parents.append(key[0])
                chances.append(chance)
            place[node] = index[key]
            chances[index[key]] = max(chances[index[key]], chance)
    return Draft(tuple(tokens), tuple(parents), tuple(chances))


def expected_tokens(ranked: Draft) -> list[float]:
    """Tokens one round trip brings with the first n nodes of a ranked draft, n = 0 … N: the corrected token and every node
    that is reached."""
    return list(itertools.accumulate(ranked.worth(), initial=1.0))
