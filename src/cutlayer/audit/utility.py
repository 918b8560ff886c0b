"""What a defence costs the answer: perplexity, next-token distribution and one task, through the whole model.

Notation: S sequences, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.models.parts import load_body
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.audit.scene import Scene
    from cutlayer.types import Cut

_BATCH: Final = 16


class Item(NamedTuple):
    """A question with choices, as token ids."""

    prompt: list[int]
    choices: list[list[int]]
    answer: int
    """Index of the right choice."""


class UtilityFigures(NamedTuple):
    """What is left of the model under a defence."""

    perplexity: float
    undefended_perplexity: float
    kl: float
    """Mean KL(undefended ‖ defended) of the next-token distribution, in nats."""
    agreement: float
    """Share of positions where the likeliest next token is the undefended one."""
    tokens: int

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.05 is five per cent more than undefended."""
        return self.perplexity / self.undefended_perplexity - 1


class Utility:
    """The rest of the model, to see what defended hidden states still lead to.

    Args:
        directory: model directory.
        cut: of the scenes to be measured.
    """

    def __init__(self, directory: Path, cut: Cut) -> None:
        self._body = load_body(directory, cut, torch.float32)
        self._reference: dict[bytes, torch.Tensor] = {}

    def measure(self, scene: Scene, ids: torch.Tensor) -> UtilityFigures:
        """Run sequences [S, T] with and without the scene's defence; the first token is not predicted."""
        loss = reference_loss = kl = agreement = 0.0
        for batch in torch.split(ids, _BATCH):
            hidden = scene.hidden(batch)  # [B, T, D]
            released = torch.stack(
                [
                    scene.release(hidden[i], batch[i].tolist(), Secret(secrets.token_bytes(32)))
                    for i in range(len(batch))
                ]
            )
            plain, defended = self._undefended(scene, batch, hidden), self._log_probs(scene, released)  # [B, T, V]
            truth = batch[:, 1:, None]
            loss -= float(defended[:, :-1].gather(-1, truth).sum())
            reference_loss -= float(plain[:, :-1].gather(-1, truth).sum())
            kl += float((plain[:, :-1].exp() * (plain[:, :-1] - defended[:, :-1])).sum())
            agreement += float((plain[:, :-1].argmax(-1) == defended[:, :-1].argmax(-1)).sum())
        count = ids[:, 1:].numel()
        return UtilityFigures(
            math.exp(loss / count), math.exp(reference_loss / count), kl / count, agreement / count, count
        )

    def accuracy(self, scene: Scene, items: Sequence[Item]) -> list[bool]:
        """Whether the likeliest choice (mean log-probability per token) is the right one, for each item."""
        right = []
        for item in items:
            scores = []
            for choice in item.choices:
                ids = [*item.prompt, *choice]
                hidden = scene.hidden(torch.tensor([ids]))[0]
                released = scene.release(hidden, ids, Secret(secrets.token_bytes(32)))
                log_probs = self._log_probs(scene, released[None])[0]  # [T, V]
                places = range(len(item.prompt) - 1, len(ids) - 1)
                scores.append(sum(float(log_probs[i, ids[i + 1]]) for i in places) / len(choice))
            right.append(scores.index(max(scores)) == item.answer)
        return right

    def _undefended(self, scene: Scene, batch: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Cached in half precision: many defences are measured on one text."""
        key = batch.numpy().tobytes()
        if key not in self._reference:
            self._reference[key] = self._log_probs(scene, hidden).half()
        return self._reference[key].float()

    def _log_probs(self, scene: Scene, hidden: torch.Tensor) -> torch.Tensor:
        tail = scene.parts.tail
        with torch.inference_mode():
            middle = self._body(hidden.to(self._body.shell.device), self._body.new_cache())
            logits = tail(middle, tail.new_cache())
        return torch.log_softmax(logits.float().cpu(), dim=-1)
