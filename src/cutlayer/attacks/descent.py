"""Gradient descent from hidden states to embeddings, several prompts at once.

What is optimised, how, and what for is a `Recipe`, one per attack. A prompt leaves the batch as soon as its nearest tokens
explain everything that was observed, which only an exact law can say: going on could not change the guess.

Notation: B prompts, N sessions, T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from cutlayer.attacks.matching import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.attacks.attack import Observation
    from cutlayer.attacks.matching import EmbeddingForward, Lookup, Padded
    from cutlayer.defences.channel import Channel

_REVIEW: Final = 25
"""Steps between two looks at the whole table, one of which costs about as much as a step at k = 4."""


class Moment(NamedTuple):
    """What an objective is computed from."""

    states: torch.Tensor
    """[B, T, D]"""
    variable: torch.Tensor
    """[B, T, D]"""
    targets: Padded


class Recipe(Protocol):
    """What is optimised, how and what for."""

    def start(self, rows: torch.Tensor) -> torch.Tensor:
        """The first value of the variable [T, D], given the estimated hidden states [T, D]."""
        ...

    def embeddings(self, variable: torch.Tensor) -> torch.Tensor:
        """What the variable [..., D] stands for, [..., D]."""
        ...

    def loss(self, moment: Moment) -> torch.Tensor:
        """The objective, a sum over prompts."""
        ...

    def project(self, variable: torch.Tensor) -> None:
        """Put the variable [T, D] back into its bounds, in place."""
        ...

    def optimiser(self, variables: list[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimiser, with the first learning rate."""
        ...

    def rate(self, share: float) -> float:
        """Learning rate at a share of the steps, as a multiple of the first."""
        ...


class Descended(NamedTuple):
    """Where one prompt's embeddings were."""

    embeddings: dict[int, torch.Tensor]
    """Number of steps → [T, D]."""
    steps: int
    """Taken before its guess explained everything, or in all."""


def descend(
    recipe: Recipe,
    forward: EmbeddingForward,
    lookup: Lookup,
    channel: Channel,
    observations: Sequence[Observation],
    stops: Sequence[int],
) -> list[Descended]:
    """Minimise the recipe's objective for every prompt.

    Args:
        recipe: the attack's.
        forward: the head.
        lookup: from embeddings to tokens.
        channel: the law of the defence.
        observations: one per prompt.
        stops: numbers of steps after which the embeddings are wanted, ascending; the last is when to end.
    """
    device = forward.table.device
    targets = Targets.of(observations, channel, device)
    variables = [recipe.start(targets.rows(i)).requires_grad_() for i in range(len(targets))]
    optimiser = recipe.optimiser(variables)
    first_rates = [group["lr"] for group in optimiser.param_groups]
    results = [Descended({}, stops[-1]) for _ in variables]
    active = list(range(len(variables)))
    for step in range(stops[-1]):
        if step % _REVIEW == 0:
            if channel.exact:
                with torch.no_grad():
                    places = {i: recipe.embeddings(variables[i]) for i in active}
                for i in _explained(forward, lookup, channel, observations, places):
                    results[i] = Descended({**dict.fromkeys(stops, places[i]), **results[i].embeddings}, step)
                    active.remove(i)
            if not active:
                break
            batch = targets.padded(active)
        for group, rate in zip(optimiser.param_groups, first_rates, strict=True):
            group["lr"] = rate * recipe.rate(step / stops[-1])
        variable = pad_sequence([variables[i] for i in active], batch_first=True)  # [B, T, D]
        loss = recipe.loss(Moment(forward(recipe.embeddings(variable)), variable, batch))
        optimiser.zero_grad()  # leaves prompts that are done without a gradient, so that they stand still
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            for i in active:
                recipe.project(variables[i])
                if step + 1 in stops:
                    results[i].embeddings[step + 1] = recipe.embeddings(variables[i]).clone()
    return results


def _explained(
    forward: EmbeddingForward,
    lookup: Lookup,
    channel: Channel,
    observations: Sequence[Observation],
    places: dict[int, torch.Tensor],
) -> list[int]:
    """The prompts whose embeddings [T, D] lie nearest to tokens that are accepted at every position."""
    tokens = [lookup(place).tokens[:, 0] for place in places.values()]
    return [
        i
        for i, states in zip(places, forward.of_tokens(tokens), strict=True)
        if _accepted(channel, observations[i].released.to(states.device), states)
    ]


def _accepted(channel: Channel, released: torch.Tensor, states: torch.Tensor) -> bool:
    """Whether [N, T, D] may have left in place of states [T, D]."""
    return all(bool(channel.accepts(released[:, t], states[t : t + 1])) for t in range(len(states)))
