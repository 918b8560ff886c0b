"""What a training carries along, in one safetensors file: weights, the best so far, AdamW's moments, and how far it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

_PROGRESS: Final = "progress"
_NOW, _BEST, _FIRST, _SECOND = "now/", "best/", "exp_avg/", "exp_avg_sq/"


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """How far a training is."""

    acceptance: list[float]
    """Held-out tokens per trip: before the first step, then at each look."""
    step: int = 0
    since_best: int = 0
    """Looks since the best one."""
    losses: list[float] = []
    """Mean over the steps before each look."""
    running: list[float] = []
    """Losses since the last look."""

    def look(self, acceptance: float) -> None:
        """Held-out acceptance was measured."""
        self.since_best = 0 if acceptance > max(self.acceptance) else self.since_best + 1
        self.acceptance.append(acceptance)
        self.losses.append(sum(self.running) / len(self.running))
        self.running = []


class Checkpoint:
    """See the module; made by `start` or `load`."""

    def __init__(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        self.progress = progress
        self._tensors = tensors

    @classmethod
    def start(cls, weights: Mapping[str, nn.Parameter], vocabulary: torch.Tensor, acceptance: float) -> Checkpoint:
        """Of a training that begins with these weights."""
        tensors = {"vocabulary": vocabulary}
        for name, weight in weights.items():
            tensors[_NOW + name] = weight.detach().clone()
            tensors[_BEST + name] = weight.detach().clone()
        return cls(Progress([acceptance]), tensors)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read it.

        Raises:
            WeightsError: it is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                progress = msgspec.json.decode((file.metadata() or {}).get(_PROGRESS, ""), type=Progress)
                return cls(progress, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, msgspec.MsgspecError) as error:
            raise WeightsError(f"{path} is no checkpoint of a training: {error}; remove it and start anew") from error

    @property
    def vocabulary(self) -> torch.Tensor:
        """[R] token ids the head may guess."""
        return self._tensors["vocabulary"]

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        partial = path.with_suffix(".partial")
        save_file(self._tensors, partial, {_PROGRESS: msgspec.json.encode(self.progress).decode()})
        os.replace(partial, path)  # noqa: PTH105

    def take(self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Remember where the training stands, after a look."""
        for name, weight in weights.items():
            self._tensors[_NOW + name] = weight.detach().clone()
            if self.progress.since_best == 0:
                self._tensors[_BEST + name] = weight.detach().clone()
            self._tensors[_FIRST + name] = optimizer.state[weight]["exp_avg"].clone()
            self._tensors[_SECOND + name] = optimizer.state[weight]["exp_avg_sq"].clone()

    @torch.no_grad()
    def restore(self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Put weights and moments back where they were."""
        for name, weight in weights.items():
            weight.copy_(self._tensors[_NOW + name])
            if self.progress.step:
                optimizer.state[weight] = {
                    "step": torch.tensor(float(self.progress.step)),
                    "exp_avg": self._tensors[_FIRST + name].clone(),
                    "exp_avg_sq": self._tensors[_SECOND + name].clone(),
                }

    @torch.no_grad()
    def restore_best(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Set the weights to those with the highest held-out acceptance."""
        for name, weight in weights.items():
            weight.copy_(self._tensors[_BEST + name])
