"""How likely the model found each token, and what it found likelier.

Always of the model's own distribution, before temperature, penalties, bias and masks: the figures of one text do not depend on
how it was sampled. (This is also what OpenAI's interface reports.)

Notation: T tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Verified


class Logprobs(msgspec.Struct, frozen=True):
    """Of one token."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens and their log-probabilities, likeliest first."""


def logprobs_of(logits: torch.Tensor, token: int, top: int) -> Logprobs:
    """Log-probability of `token` under logits [V], and the `top` likeliest."""
    return _rows(logits.unsqueeze(0), [token], top)[0]


class PromptLogprobs:
    """Collects those of a prompt while it is sent; only a chunk's distributions are ever held.

    Args:
        prompt: token ids.
        top: how many of the likeliest to keep at each position.
    """

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        self._prompt = prompt
        self._top = top
        self.entries: list[Logprobs | None] = [None]
        """One per token of the prompt; None for the first, before which there is nothing."""

    def take(self, chunk: Verified) -> None:
        """Take the next chunk of the prompt."""
        first = chunk.base + 1
        targets = self._prompt[first : first + len(chunk.logits)]
        if targets:  # those after the last token belong to the answer
            self.entries += _rows(chunk.logits[: len(targets)], targets, self._top)


def _rows(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Logprobs]:
    logprobs = logits.float().log_softmax(-1)  # [T, V]
    chosen = logprobs.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1).tolist()  # [T]
    likeliest = logprobs.topk(min(top, logits.shape[1]))
    return [
        Logprobs(token, value, list(zip(ids, values, strict=True)))
        for token, value, ids, values in zip(
            tokens, chosen, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    ]
