"""Many continuations of one prefix in one forward: a tree of tokens, each of which sees only its ancestors.

All candidates for a position are packed into one sequence, share the prefix's keys and values without a copy, and are kept
apart by the attention mask.

    tree = TreeForward(head)
    tree.extend([5, 6], [-1, 0])        # a chain of two tokens
    states = tree.extend([7, 8], [1, 1])  # two continuations of it, [2, D]
    tree.keep([0, 1, 3])                # the second was right

Notation: N nodes added, M nodes held, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.models.cache import RollbackCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.models.parts import Head

_PACKED: Final = 512
"""Tokens looked at in one forward: attention among them costs their square."""


class TreeForward:
    """Hidden states of a token tree.

    Footgun: sliding windows are not applied; a tree must stay shorter than the model's window.

    Args:
        head: the layers to run.
    """

    def __init__(self, head: Head) -> None:
        self._model = head.shell.base_model
        self._layers = head.layers
        self._device = head.embedding().device
        self._cache = RollbackCache(head.layers)
        self._depths: list[int] = []
        self._visible = torch.zeros(0, 0, dtype=torch.bool)  # [M, M], node sees node

    def __len__(self) -> int:
        return len(self._depths)

    def extend(self, ids: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Add tokens and return their hidden states [N, D].

        Args:
            ids: tokens; they become nodes M, M + 1, …
            parents: for each, the node it follows; −1 for the beginning. May be a node added in the same call.
        """
        held, count = len(self._depths), len(ids)
        visible = torch.zeros(held + count, held + count, dtype=torch.bool)
        visible[:held, :held] = self._visible
        for node, parent in enumerate(parents, start=held):
            self._depths.append(self._depths[parent] + 1 if parent >= 0 else 0)
            if parent >= 0:
                visible[node] = visible[parent]
            visible[node, node] = True
        self._visible = visible
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(ids)], device=self._device),
                position_ids=torch.tensor([self._depths[held:]], device=self._device),
                attention_mask=visible[held:].to(self._device)[None, None],  # [1, 1, N, M + N]
                past_key_values=self._cache if self._layers else None,
                use_cache=bool(self._layers),
            )
        self._cache.tree.extend(count)
        hidden: torch.Tensor = output.last_hidden_state[0].float()  # [N, D]
        return hidden

    def peek(self, ids: Sequence[int], parent: int) -> torch.Tensor:
        """Hidden states [N, D] of tokens of which each follows the same node; none of them is added."""
        held, states = len(self), []
        for start in range(0, len(ids), _PACKED):
            part = ids[start : start + _PACKED]
            states.append(self.extend(part, [parent] * len(part)))
            self.keep(range(held))
        return torch.cat(states)

    def keep(self, nodes: Sequence[int]) -> None:
        """Forget all but these nodes, which are renumbered from 0 in the given, ascending order.

        A kept node's ancestors must be kept too.
        """
        if len(nodes) == len(self._depths):
            return
        index = torch.tensor(list(nodes), dtype=torch.long)
        self._visible = self._visible[index][:, index]
        self._depths = [self._depths[node] for node in nodes]
        if len(nodes) and int(index[-1]) == len(nodes) - 1:
            self._cache.rollback(len(nodes))  # a prefix: nothing to move
        elif len(nodes):
            with torch.inference_mode():
                self._cache.select(index.to(self._device))
        else:
            self._cache.rollback(0)
