"""Where the rows of a chunk are and which positions they may see, as tensors.

Notation: T rows of a chunk, S slots held once the chunk is in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cutlayer.tree import Tree


def positions(tree: Tree, start: int) -> list[int]:
    """Positions of the slots from `start` on, [T]."""
    return [*range(start, tree.trunk), *map(tree.position, range(max(start, tree.trunk), len(tree)))]


def visible(tree: Tree, start: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which slots each of those from `start` on may see, bool [T, S].

    Args:
        tree: holds the chunk already.
        start: its first slot.
        window: positions a row may look back, itself included; None for all.
        device: of the result.
    """
    held = len(tree)
    rows = torch.arange(start, held, device=device)[:, None]  # [T, 1]
    seen = torch.arange(held, device=device) <= rows  # [T, S]
    for slot in range(max(start, tree.trunk), held):
        trunk, branch = tree.path(slot)
        seen[slot - start, trunk:] = False
        seen[slot - start, branch] = True
    if window is not None:
        at = torch.tensor(positions(tree, 0), device=device)  # [S]
        seen &= at > at[start:, None] - window
    return seen
