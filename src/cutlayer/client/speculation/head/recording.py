"""Writing down what a session shows, while another speculator guesses for it.

Notation: T tokens, K likeliest tokens kept of each distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cutlayer.client.speculation.head.examples import LIKELIEST, Example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.speculation.speculator import Speculator, Verified


class Recorder:
    """A speculator.

    Args:
        guessing: makes the drafts.
        nodes: guesses of a draft at most.
    """

    wants_prompt = True
    adaptive = False  # sessions side by side tell nothing of what a row costs

    def __init__(self, guessing: Speculator, nodes: int = 24) -> None:
        self._guessing = guessing
        self._nodes = nodes
        self._parts: list[tuple[torch.Tensor, ...]] = []

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        return self._guessing.draft(ids, min(most, self._nodes))

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`."""
        self._guessing.observe(seen)
        rows = list(seen.kept)
        best = seen.logits[rows].float().softmax(-1).topk(min(LIKELIEST, seen.logits.shape[1]))
        self._parts.append(
            (
                torch.tensor([seen.tokens[row] for row in rows], dtype=torch.int32),
                seen.states.returned[rows].cpu().bfloat16(),
                best.indices.int(),
                best.values.bfloat16(),
            )
        )

    def close(self) -> None:
        """See `Speculator.close`."""
        self._guessing.close()

    def example(self, answer: int) -> Example:
        """What was shown since the last one: a text with the model's own words from position `answer` on."""
        ids, returned, likely, chances = (torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = []
        return Example(ids, returned, likely, chances, torch.tensor([answer], dtype=torch.int32))
