"""Held-out V-information: how many bits about the token a family of readers can use.

I_V(h → X) = H_V(X | ∅) − H_V(X | h), the fall in held-out cross-entropy when a reader of family V is shown the hidden state
(Xu et al., ICLR 2020, arXiv 2002.10689). Unlike mutual information it can rise and fall with depth, and it can be
estimated from 10⁴ samples in high dimension.

The target is the token id among the most frequent types of the training split, or "other", to which types seen once
belong as well. H_V(X | ∅) is the unigram model of the training split. Documents, not tokens, are split: a reader must not
meet the test's wording. In-sample estimates are inflated even for small readers, so all figures are held-out, and the same
with permuted targets stands beside.

Footguns: it is a lower bound that grows with training data, and H_V(X | ∅) grows with the number of types, so only figures
over the same tokens compare; what an attacker with more text reads is more. Readers start from the unigram model and stop on
held-out documents of the training split, so on permuted targets they mostly stay what they were: exactly 0 bits.

Notation: N tokens, D hidden size, C classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn

from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

Family = Literal["linear", "mlp"]
"""One matrix and softmax, or one hidden layer of GELU units before it."""

_SINK_RATIO: Final = 10.0
"""A row longer than this many medians, an attention sink, is scaled down to it and left out of means and deviations."""
_RESAMPLES: Final = 2000
_POSITIVE = msgspec.Meta(ge=1)


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a reader is trained (AdamW)."""

    epochs: Annotated[int, _POSITIVE] = 30
    """At most."""
    patience: Annotated[int, _POSITIVE] = 2
    """Epochs without improvement before it stops."""
    batch: Annotated[int, _POSITIVE] = 256
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 2e-3
    decay: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-2
    hidden: Annotated[int, _POSITIVE] = 512


class VInformation(NamedTuple):
    """All in bits per token; intervals are bootstrapped over documents."""

    information: Figure
    shuffled: Figure
    """The same with targets permuted: what the procedure says where there is nothing."""
    entropy: Figure
    """H_V(X | ∅), the most `information` could be."""


def v_information(
    states: torch.Tensor,
    ids: torch.Tensor,
    documents: Sequence[int],
    *,
    family: Family = "linear",
    types: int = 2000,
    splits: int = 5,
    training: Training | None = None,
    seed: int = 0,
) -> VInformation:
    """Estimate it by cross-validation over documents: every token is held out once.

    Args:
        states: [N, D] hidden states.
        ids: [N] their tokens.
        documents: for each, the document it is from.
        family: of readers.
        types: most frequent token types that are told apart; the rest are one class.
        splits: folds, at least 2.
        training: of the readers.
        seed: of folds, initial weights, order and permutation.

    Raises:
        InputError: lengths differ, or fewer documents than three per fold, or text in which no token is repeated.
    """
    names, owner = np.unique(np.asarray(documents), return_inverse=True)
    if not len(states) == len(ids) == len(owner):
        raise InputError(
            f"{len(states)} states, {len(ids)} tokens and {len(owner)} documents: give one of each per token"
        )
    if splits < 2 or len(names) < 3 * splits:
        raise InputError(f"{len(names)} documents in {splits} folds: give at least 2 folds and 3 documents per fold")
    generator = torch.Generator().manual_seed(seed)
    own = torch.from_numpy(owner)  # [N]
    fold = torch.randperm(len(names), generator=generator) % splits  # [documents]
    settings = training or Training()
    permuted = ids[torch.randperm(len(ids), generator=generator)]
    baseline, gain, nothing = (torch.zeros(len(ids), dtype=torch.float64) for _ in range(3))
    for held in range(splits):
        test = fold[own] == held  # [N]
        others = (fold != held).nonzero()[:, 0]
        stopping = others[torch.randperm(len(others), generator=generator)[: math.ceil(len(others) / 8)]]
        inner = torch.isin(own, stopping)
        parts = _Parts(~test & ~inner, inner)
        rows = _standardised(states, ~test)
        for targets, gains in ((ids, gain), (permuted, nothing)):
            classes, prior = _classes(targets, ~test, types)
            reader = _Reader(rows.shape[1], prior, family, settings.hidden, generator)
            _train(reader, rows, classes, parts, settings, generator)
            with torch.no_grad():
                log_q = torch.log_softmax(reader(rows[test]), -1)
            truth = classes[test]
            gains[test] = (log_q.gather(1, truth[:, None])[:, 0] - prior[truth]).double() / math.log(2)
            if targets is ids:
                baseline[test] = -prior[truth].double() / math.log(2)
    return VInformation(*(_per_document(values.numpy(), owner, len(names)) for values in (gain, nothing, baseline)))


class _Parts(NamedTuple):
    train: torch.Tensor
    """[N] of bool."""
    inner: torch.Tensor
    """[N] of bool: documents of the training split that decide when to stop."""


class _Reader(nn.Module):
    """Logits [N, C] of rows [N, D]; at first those of the unigram model, whatever the row."""

    def __init__(self, size: int, prior: torch.Tensor, family: Family, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self._prior = prior  # [C]
        self._features: nn.Module = nn.Identity()
        if family == "mlp":
            first = nn.Linear(size, hidden)
            nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(first.bias)
            self._features = nn.Sequential(first, nn.GELU())
        self._last = nn.Linear(hidden if family == "mlp" else size, len(prior))
        nn.init.zeros_(self._last.weight)
        nn.init.zeros_(self._last.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._last(self._features(rows)) + self._prior
        return logits


def _classes(ids: torch.Tensor, train: torch.Tensor, types: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class of every token [N], and the log unigram probabilities [C] of the training split, smoothed by one count."""
    frequent, counts = torch.unique(ids[train], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:types]
    # What was seen once stands for what was never seen; without it "other" would be a class nobody met.
    frequent = frequent[order[counts[order] > 1]].sort().values
    if not len(frequent):
        raise InputError(f"no token occurs twice among {int(train.sum())}: there is nothing to learn, give more text")
    place = torch.searchsorted(frequent, ids).clamp_max(len(frequent) - 1)
    classes = torch.where(frequent[place] == ids, place, len(frequent))  # [N], the last is "other"
    prior = torch.bincount(classes[train], minlength=len(frequent) + 1).float() + 1
    return classes, (prior / prior.sum()).log()


def _standardised(states: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """States [N, D] with coordinates of mean 0 and deviation 1 over the training split's ordinary rows."""
    rows = states.float()
    lengths = rows.norm(dim=-1)
    limit = _SINK_RATIO * lengths[train].median()
    ordinary = rows[train & (lengths <= limit)]
    deviation = ordinary.std(0)
    scaled = rows * (limit / lengths.clamp_min(1e-12)).clamp_max(1)[:, None]
    standard: torch.Tensor = (scaled - ordinary.mean(0)) / deviation.clamp_min(1e-6 * float(deviation.max()) + 1e-12)
    return standard


def _train(
    reader: _Reader,
    rows: torch.Tensor,
    classes: torch.Tensor,
    parts: _Parts,
    settings: Training,
    generator: torch.Generator,
) -> None:
    """Leave the reader at its best epoch by the inner held-out documents; epoch 0 is the unigram model itself."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=settings.rate, weight_decay=settings.decay)
    places = parts.train.nonzero()[:, 0]
    best, kept, since = math.inf, reader.state_dict(), 0
    for epoch in range(settings.epochs + 1):
        if epoch:
            for batch in torch.split(places[torch.randperm(len(places), generator=generator)], settings.batch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(reader(rows[batch]), classes[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            reached = float(nn.functional.cross_entropy(reader(rows[parts.inner]), classes[parts.inner]))
        if reached < best:
            best, since = reached, 0
            kept = {name: value.clone() for name, value in reader.state_dict().items()}
        else:
            since += 1
        if since >= settings.patience:
            break
    reader.load_state_dict(kept)


def _per_document(values: np.ndarray, owner: np.ndarray, documents: int, seed: int = 0) -> Figure:
    """Mean over tokens with a 95 % interval, bootstrapped over documents."""
    sums = np.bincount(owner, values, documents)
    counts = np.bincount(owner, minlength=documents)
    draws = np.random.default_rng(seed).integers(0, documents, (_RESAMPLES, documents))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), documents, "bits/token")
