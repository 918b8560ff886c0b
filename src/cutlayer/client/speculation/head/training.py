"""Training a draft head: the model's own distributions are the targets, held-out acceptance decides when to stop.

The loss is the cross-entropy between what the model would say and what the head guesses, summed over the passes of `unroll` with
weights that fall. The order of the texts follows from seed and epoch alone, and all else that training carries along is in its
checkpoint, so a run that was interrupted ends where an uninterrupted one does.

Notation: B batch, T tokens, K likeliest tokens of a target, V vocabulary, R tokens of the head's output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import msgspec
import torch
from torch.nn.utils import clip_grad_norm_

from cutlayer.client.speculation.head.acceptance import tokens_per_trip, walks
from cutlayer.client.speculation.head.checkpoint import Checkpoint, Progress
from cutlayer.client.speculation.head.examples import batch_of, load_example
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.client.speculation.head.start import fit_inputs, frequent_tokens
from cutlayer.client.speculation.head.unroll import unroll
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cutlayer.client.speculation.head.examples import Batch, Example
    from cutlayer.client.trusted import Trusted

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a head is trained."""

    outputs: _Count = 16384
    """Tokens it may guess, R."""
    rank: _Count = 96
    epochs: _Count = 3
    batch: _Count = 8
    """Texts per step."""
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 3e-4
    """Highest learning rate; it rises over the first twentieth of the steps and falls as a cosine."""
    passes: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2
    """Guesses after one another that are trained for."""
    fade: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    """Weight of each pass relative to the one before."""
    depth: Annotated[int, msgspec.Meta(ge=1, le=16)] = 6
    """Guesses of the chains that held-out acceptance is measured with."""
    checks: _Count = 10
    """Looks at it; each leaves a checkpoint."""
    patience: _Count = 3
    """Looks without gain after which training stops."""
    start_texts: _Count = 256
    """Texts that the inputs are fitted to before the first step."""
    seed: int = 0

    def checked(self) -> Recipe:
        """Return self.

        Raises:
            InputError: a value is out of range.
        """
        try:
            return msgspec.convert(msgspec.to_builtins(self), Recipe)
        except msgspec.ValidationError as error:
            raise InputError(f"draft head: {error}") from None


class Trained(msgspec.Struct, frozen=True):
    """A head and how it came about."""

    head: DraftHead
    steps: int
    losses: list[float]
    """Mean over the steps before each look."""
    acceptance: list[float]
    """Held-out tokens per trip: before the first step, then at each look."""

    @property
    def best(self) -> float:
        """Held-out tokens per trip of the head."""
        return max(self.acceptance)


def train(
    trusted: Trusted,
    learned: Sequence[Path],
    held: Sequence[Path],
    recipe: Recipe,
    kept: Path,
    report: Callable[[int, int, Progress], None],
) -> Trained:
    """Train, or go on with a training.

    Args:
        trusted: this side's layers.
        learned: examples to learn from.
        held: answers to measure on.
        recipe: how.
        kept: the checkpoint's file.
        report: told of every step: how many of how many, and what is known so far.

    Raises:
        InputError: the client holds no layer after the cut.
        WeightsError: an example or the checkpoint is damaged.
    """
    answers = [load_example(path) for path in held]
    checkpoint = Checkpoint.load(kept) if kept.is_file() else None
    if checkpoint is None:
        head = _new_head(trusted, learned, recipe)
        checkpoint = Checkpoint.start(head.trained(), head.vocabulary, _held_acceptance(head, answers, recipe, trusted))
        checkpoint.save(kept)
    else:
        head = DraftHead(trusted.parts, checkpoint.vocabulary, recipe.rank)
    optimizer = torch.optim.AdamW(head.trained().values(), lr=recipe.rate, weight_decay=0.0)
    checkpoint.restore(head.trained(), optimizer)
    place = torch.full((len(trusted.parts.head.embedding()),), -1)  # [V]
    place[head.vocabulary] = torch.arange(len(head.vocabulary))
    progress = checkpoint.progress
    per_epoch = math.ceil(len(learned) / recipe.batch)
    total = per_epoch * recipe.epochs
    every = max(total // recipe.checks, 1)
    while progress.step < total and progress.since_best < recipe.patience:
        epoch, at = divmod(progress.step, per_epoch)
        picks = _order(len(learned), recipe.seed, epoch)[at * recipe.batch : (at + 1) * recipe.batch]
        batch = batch_of([load_example(learned[i]) for i in picks])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _share(progress.step, total)
        with _precision(trusted):
            loss = loss_of(head, batch, place, recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(head.trained().values(), 1.0)
        optimizer.step()
        progress.step += 1
        progress.running.append(float(loss.detach()))
        if progress.step % every == 0 or progress.step == total:
            progress.look(_held_acceptance(head, answers, recipe, trusted))
            checkpoint.take(head.trained(), optimizer)
            checkpoint.save(kept)
        report(progress.step, total, progress)
    checkpoint.restore_best(head.trained())
    return Trained(head, progress.step, progress.losses, progress.acceptance)


def loss_of(head: DraftHead, batch: Batch, place: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The loss of one batch.

    Args:
        head: the network.
        batch: texts and what the model would say.
        place: [V], where a token is among the head's R; −1 if it is not.
        recipe: passes and their weights.
    """
    places = place[batch.likely]  # [B, T, K]
    mass = batch.chances * (places >= 0)  # [B, T, K]
    there = batch.chances[..., 0] > 0  # [B, T]
    at = torch.arange(batch.ids.shape[1])  # [T]
    total = torch.zeros(())
    for depth, logits in enumerate(unroll(head, batch.ids, batch.returned, recipe.passes)):
        likelihood = logits.float().log_softmax(-1).gather(-1, places.clamp(min=0))  # [B, T, K]
        surprise = -(mass * likelihood).sum(-1)  # [B, T]
        total = total + recipe.fade**depth * surprise[there & (at > depth)].mean()
    return total


def _new_head(trusted: Trusted, learned: Sequence[Path], recipe: Recipe) -> DraftHead:
    known = len(trusted.parts.head.embedding())
    vocabulary = frequent_tokens((load_example(path) for path in learned), known, recipe.outputs)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        head = DraftHead(trusted.parts, vocabulary, recipe.rank)
    order = _order(len(learned), recipe.seed, epoch=0)
    fit_inputs(head, trusted.parts, [load_example(learned[i]) for i in order[: recipe.start_texts]])
    return head


def _held_acceptance(head: DraftHead, answers: Sequence[Example], recipe: Recipe, trusted: Trusted) -> float:
    with _precision(trusted):
        return tokens_per_trip(walks(head, answers, recipe.depth))


def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


def _share(step: int, total: int) -> float:
    """Of the highest rate."""
    rising = max(total // 20, 1)
    return min((step + 1) / rising, 0.05 + 0.95 * (1 + math.cos(math.pi * step / total)) / 2)


def _precision(trusted: Trusted) -> torch.autocast:
    """The head's own weights are kept in float32; products are formed in the dtype the client computes in."""
    dtype = getattr(torch, trusted.dtype)
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
