"""Choosing the next token from logits, on the client, so that no distribution ever leaves it.

The order of transformers' processors is kept: repetition penalty, temperature, top-k, top-p, min-p.

Notation: V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen. Temperature 0 is greedy; the other filters then change nothing but the penalty."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Keep the likeliest tokens that together have this probability."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    """Divide positive (multiply negative) logits of tokens seen so far."""
    seed: int | None = None
    """Of the sampling generator; None draws one."""

    def checked(self) -> Sampling:
        """Return self.

        Raises:
            InputError: a value is out of range, not finite or of the wrong type.
        """
        try:
            return msgspec.convert(msgspec.to_builtins(self), Sampling)
        except msgspec.ValidationError as error:
            raise InputError(f"sampling: {error}") from None


class Sampler:
    """Draws tokens under one `Sampling`.

    Args:
        sampling: the settings.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling.checked()
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor, seen: Sequence[int]) -> int:
        """The next token id.

        Args:
            logits: [V], float32.
            seen: ids of prompt and answer so far, for the repetition penalty.
        """
        scores = self._penalised(logits, seen)
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        return int(torch.multinomial(self.probabilities(scores), 1, generator=self._generator))

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Distribution [V] after temperature and filters; `scores` are penalised logits, temperature above 0."""
        chosen = self._sampling
        scores = scores / chosen.temperature  # [V]
        if 0 < chosen.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(chosen.top_k).values[-1], -torch.inf)
        if chosen.top_p < 1:
            ascending, order = scores.sort()
            cut = ascending.softmax(-1).cumsum(-1) <= 1 - chosen.top_p
            cut[-1] = False
            scores = scores.masked_fill(torch.zeros_like(cut).scatter(0, order, cut), -torch.inf)
        if chosen.min_p > 0:
            likelihood = scores.softmax(-1)
            scores = scores.masked_fill(likelihood < chosen.min_p * likelihood.max(), -torch.inf)
        return scores.softmax(-1)

    def _penalised(self, logits: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
        penalty = self._sampling.repetition_penalty
        if penalty == 1 or not seen:
            return logits
        ids = torch.tensor(sorted(set(seen)))
        values = logits[ids]
        return logits.scatter(0, ids, torch.where(values < 0, values * penalty, values / penalty))
