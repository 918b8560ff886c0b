"""Token recycling as published (Luo et al. 2024, arXiv 2408.08696): one token's last candidates, one fixed tree.

Source: Luowaterbi/TokenRecycling, `evaluation/inference_recycling.py` and tree "2.2.2" of `tree_template_.py`. A matrix holds
for each token the 8 likeliest ones the model named when that token was last verified, in accepted and
rejected rows alike. The tree has a fixed shape: each node is a rank among its parent's candidates.

Deviations: the published matrix begins with zeros, which guess token 0; here a token that was never verified guesses nothing. Of
several rows with one token the last is kept. The tree is always sent whole; where there is less room, its last nodes are missing.

Notation: K candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.candidates import likeliest
from cutlayer.client.speculation.draft import ROOT, Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Verified

_CANDIDATES: Final = 8
"""K"""
_LEVELS: Final = (
    "0 1 2 3 4 5 6 7",
    "00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70",
    "000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500",
    "0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000",
    "00000 00001 00002 00010 00020 00100 01000 10000",
    "000000 000001 000100",
)
TREE: Final = tuple(tuple(map(int, path)) for level in _LEVELS for path in level.split())
"""Ranks from the root down, 80 nodes, parents first."""


class StaticRecycling:
    """See the module."""

    wants_prompt = False
    adaptive = False

    def __init__(self) -> None:
        self._matrix: dict[int, list[int]] = {}

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        nodes: dict[tuple[int, ...], int] = {(): ROOT}
        tokens: list[int] = []
        parents: list[int] = []
        for path in TREE:
            parent = nodes.get(path[:-1])
            if parent is None:
                continue
            known = self._matrix.get(ids[-1] if parent == ROOT else tokens[parent])
            if known is not None and path[-1] < len(known) and len(tokens) < most:
                nodes[path] = len(tokens)
                tokens.append(known[path[-1]])
                parents.append(parent)
        return Draft(tuple(tokens), tuple(parents), (1.0,) * len(tokens))

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`."""
        rows = likeliest(seen.logits, _CANDIDATES)[0].tolist()  # [T, K]
        self._matrix.update(zip(seen.tokens, rows, strict=True))

    def close(self) -> None:
        """See `Speculator.close`."""
