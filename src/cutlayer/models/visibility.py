"""Where the rows of a chunk are and which positions they may see, as tensors.

Each guess is worked out from the one it follows, not from its whole path: a peer chooses the tree, and the deepest one must not
cost much more than a chain of as many rows.

Notation: T rows of a chunk, S slots held once the chunk is in, G of them after the trunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from cutlayer.tree import Tree


def positions(tree: Tree, start: int) -> list[int]:
    """Positions of the slots from `start` on, [T]."""
    places: list[int] = []  # [G]
    for slot in range(tree.trunk, len(tree)):
        parent = tree.parent(slot)
        places.append(1 + (parent if parent < tree.trunk else places[parent - tree.trunk]))
    return [*range(start, tree.trunk), *places[max(start - tree.trunk, 0) :]]


def visible(tree: Tree, start: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which slots each of those from `start` on may see, bool [T, S].

    Args:
        tree: holds the chunk already.
        start: its first slot.
        window: positions a row may look back, itself included; None for all.
        device: of the result.
    """
    held, trunk = len(tree), tree.trunk
    slots = torch.arange(held, device=device)  # [S]
    seen = slots <= slots[start:, None]  # [T, S]
    if held > trunk:
        guessed, first = max(start, trunk), max(start - trunk, 0)
        below, branches = _branches(tree)
        seen[guessed - start :, :trunk] = slots[:trunk] < torch.from_numpy(below[first:]).to(device)[:, None]
        seen[guessed - start :, trunk:] = torch.from_numpy(branches[first:]).to(device)
    if window is not None:
        at = torch.tensor(positions(tree, 0), device=device)  # [S]
        seen &= at > at[start:, None] - window
    return seen


def _branches(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """What each guess sees: how many slots of the trunk, [G], and which guesses, bool [G, G]."""
    count = len(tree) - tree.trunk
    below = np.empty(count, dtype=np.int64)
    branches = np.eye(count, dtype=bool)
    for guess in range(count):
        parent = tree.parent(tree.trunk + guess)
        if parent < tree.trunk:
            below[guess] = parent + 1
        else:
            below[guess] = below[parent - tree.trunk]
            branches[guess, :guess] = branches[parent - tree.trunk, :guess]
    return below, branches
