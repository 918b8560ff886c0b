"""The reading of PriPert aimed at candidate search: perturb towards the hidden state of another plausible token.

Notation: V vocabulary, D hidden size, C candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.defences.pripert_local import LocalMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.models.parts import Head

_DISTINCT: Final = 1e-4
"""Relative distance below which two hidden states are one: tables hold identical rows for tokens never trained."""


class Decoy:
    """δ along F(v'; prefix) − F(v; prefix), v' drawn by key from the tokens whose embeddings are most similar to v's.

    Where all of them give the very same hidden state, the direction is the keyed draws themselves.

    Args:
        head: the client's first layers.
        neighbours: how many tokens to draw from.
    """

    def __init__(self, head: Head, neighbours: int) -> None:
        self._head = head
        rows, width = head.embedding().shape
        self._neighbours = min(neighbours, rows - 1, width)  # there are D draws to choose by
        self._mean = head.embedding().float().mean(0)  # [D]
        self._lengths: torch.Tensor | None = None  # [V], of the centred rows; once it is needed

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """See `Reading`."""
        with torch.inference_mode():
            token = ids[-1]
            decoys = self._similar(token)  # [C]
            local = LocalMap(self._head, torch.tensor([list(ids)]))
            table = self._head.shell.get_input_embeddings()
            true, *others = local(table(torch.cat([decoys.new_tensor([token]), decoys]))).float()
            towards = torch.stack(others) - true  # [C, D]
            distinct = towards.norm(dim=-1) > _DISTINCT * true.norm()
            if not distinct.any():
                return draws
            # The largest of independent draws is each of them equally often
            order = draws[: len(towards)].to(towards.device).masked_fill(~distinct, -torch.inf)
            chosen: torch.Tensor = towards[order.argmax()]
            return chosen.to(draws)

    def _similar(self, token: int) -> torch.Tensor:
        """The most similar other tokens by cosine about the table's mean, [C]."""
        table = self._head.embedding().float()
        if self._lengths is None:
            self._lengths = (table - self._mean).norm(dim=-1).clamp_min(1e-12)
        row = table[token] - self._mean  # [D]
        cosine = (table @ row - self._mean.dot(row)) / self._lengths  # [V]
        cosine[token] = -torch.inf
        similar: torch.Tensor = cosine.topk(self._neighbours).indices
        return similar
