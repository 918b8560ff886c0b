"""How every learned attack is trained: AdamW, cosine rate, early stopping on text the attacker holds back from itself.

    with seeded(threat.seed, threat.device):
        network = …
        fit(network, loss, hold_out(sequences), Recipe(steps=800, batch=512), progress)

Whole sequences are held back, never positions: neighbouring positions of one text share most of their tokens.

All chance (initial weights, order, dropout, negatives) comes from torch's global generator inside `seeded`, which leaves the
caller's generator as it was; dropout and initialisation of modules accept no generator of their own.

Notation: S sequences, T positions, N pairs of hidden state and token.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

_HELD_SHARE: Final = 0.05
_HELD_MOST: Final = 64
"""Sequences; more would cost time and decide nothing."""


class Recipe(NamedTuple):
    """How long and how fast."""

    steps: int
    batch: int
    """Items (pairs or sequences) per step."""
    rate: float = 1e-3
    """Highest learning rate."""
    decay: float = 0.01
    """Decoupled weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    clip: float | None = 1.0
    """L2 norm gradients are scaled down to."""
    checks: int = 10
    """Looks at the held-back loss."""
    patience: int = 3
    """Looks without improvement after which training stops."""


class Split(NamedTuple):
    """What is trained on and what is held back, as indices."""

    train: torch.Tensor
    held: torch.Tensor
    """Empty: never stop early."""

    def pairs(self, length: int) -> Split:
        """The same split of sequences of `length` positions, as indices of single positions."""
        places = torch.arange(length)
        return Split(*((part[:, None] * length + places).flatten() for part in self))


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Chance inside depends on `seed` alone, chance outside is not touched."""
    with torch.random.fork_rng([] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        yield


def hold_out(sequences: int) -> Split:
    """A random split of S sequences.

    Raises:
        InputError: fewer than two.
    """
    if sequences < 2:
        raise InputError(f"{sequences} auxiliary sequence: a learned attack needs at least 2, one is held back")
    held = min(_HELD_MOST, max(1, round(_HELD_SHARE * sequences)))
    order = torch.randperm(sequences)
    return Split(order[held:], order[:held])


def fit(
    module: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    split: Split,
    recipe: Recipe,
    progress: Callable[[float], None] = lambda share: None,
) -> float | None:
    """Train the parameters of `module` that want gradients, and keep those with the lowest held-back loss.

    Args:
        module: in training mode meanwhile; in evaluation mode afterwards.
        loss: mean loss of the items at these indices.
        split: indices.
        recipe: how long.
        progress: told the share done.

    Returns:
        The lowest held-back loss; None if nothing was held back.
    """
    optimiser = torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        recipe.rate,
        weight_decay=recipe.decay,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe))
    keeper = _Keeper(module, loss, split.held, recipe)
    every = max(1, recipe.steps // recipe.checks)
    batches = _batches(split.train, recipe.batch)
    module.train()
    for step in range(1, recipe.steps + 1):
        value = loss(next(batches))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            clip_grad_norm_(module.parameters(), recipe.clip)
        optimiser.step()
        rates.step()
        progress(step / recipe.steps)
        if (step % every == 0 or step == recipe.steps) and keeper.enough():
            break
    progress(1.0)
    module.eval()
    return keeper.restore()


class _Keeper:
    """Remembers the best parameters so far."""

    def __init__(
        self, module: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], held: torch.Tensor, recipe: Recipe
    ) -> None:
        self._module = module
        self._loss = loss
        self._held = held
        self._recipe = recipe
        self._lowest: float | None = None
        self._best: dict[str, torch.Tensor] = {}
        self._waited = 0

    def enough(self) -> bool:
        """Look at the held-back loss; whether it has not fallen for too long."""
        if not len(self._held):
            return False
        self._module.eval()
        with torch.no_grad():
            parts = torch.split(self._held, self._recipe.batch)
            mean = sum(float(self._loss(part)) * len(part) for part in parts) / len(self._held)
        self._module.train()
        if self._lowest is None or mean < self._lowest:
            self._lowest, self._waited = mean, 0
            self._best = {name: p.detach().clone() for name, p in self._module.named_parameters() if p.requires_grad}
        else:
            self._waited += 1
        return self._waited >= self._recipe.patience

    def restore(self) -> float | None:
        """Put the best parameters back."""
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                if name in self._best:
                    parameter.copy_(self._best[name])
        return self._lowest


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the highest rate at a step."""
    rise = min(1.0, (step + 1) / max(1.0, recipe.warmup * recipe.steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _batches(indices: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Batches without end; every index once before any comes again."""
    while True:
        yield from torch.split(indices[torch.randperm(len(indices))], size)
