"""What an obfuscation, or a change of the base before it, costs the answers: perplexity and one task, through the whole model.

A permutation of the vocabulary changes neither, so the export is run on permuted ids and compared with the plain model directly.

Notation: n documents or items, B sequences of a batch, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from cutlayer.audit.metrics.documents import TAILS, resamples
from cutlayer.records.record import Figure, proportion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.audit.utility import Item


class Quality(NamedTuple):
    """Of one model."""

    nats: list[float]
    """Negative log-likelihood of each document, without its first token."""
    tokens: list[int]
    """Predicted tokens of each document."""
    right: list[bool]
    """Whether each item was answered rightly."""


@torch.inference_mode()
def quality(
    model: Any, documents: Sequence[Sequence[int]], items: Sequence[Item], tau: torch.Tensor | None = None
) -> Quality:
    """Run a model.

    Args:
        model: of transformers.
        documents: plain ids.
        items: questions with choices; the likeliest choice is the answer, by mean log-probability per token.
        tau: ids as the model knows them, [V]; None for a plain model.
    """
    nats = [float(-_log_probabilities(model, [list(document)], tau)[0][1:].sum()) for document in documents]
    right = []
    for item in items:
        start = len(item.prompt)
        found = _log_probabilities(model, [[*item.prompt, *choice] for choice in item.choices], tau)
        scores = [float(one[start:].mean()) for one in found]
        right.append(scores.index(max(scores)) == item.answer)
    return Quality(nats, [len(document) - 1 for document in documents], right)


def perplexity(found: Quality) -> Figure:
    """Over all tokens, interval over documents."""
    return _over_documents(np.array(found.nats), found.tokens, np.exp, "perplexity")


def perplexity_increase(found: Quality, plain: Quality) -> Figure:
    """Relative: 0.05 is five per cent more. Both ran on the same documents, which are resampled together."""
    return _over_documents(np.subtract(found.nats, plain.nats), found.tokens, np.expm1, "fraction")


def relative_task_loss(found: Quality, plain: Quality) -> Figure:
    """1 − accuracy over plain accuracy; negative where the changed model answers more rightly. Items are resampled together.

    Where both answer every item alike, resampling has nothing to vary; the interval is then what Wilson's leaves to a share of
    items that differ, one way or the other.

    Raises:
        ValueError: the plain model answers nothing rightly.
    """
    ours, theirs = np.array(found.right, dtype=np.float64), np.array(plain.right, dtype=np.float64)
    if not theirs.any():
        raise ValueError("the plain model answers no item rightly, so there is nothing to lose")
    if (ours == theirs).all():
        most = float(proportion(0, len(ours)).high / theirs.mean())
        return Figure(0.0, -most, most, len(ours), "fraction")
    counts = resamples(len(ours), 0)  # [R, n]
    hits = counts @ theirs
    low, high = np.quantile(1 - (counts @ ours)[hits > 0] / hits[hits > 0], TAILS)
    return Figure(float(1 - ours.sum() / theirs.sum()), float(low), float(high), len(ours), "fraction")


def _log_probabilities(model: Any, sequences: list[list[int]], tau: torch.Tensor | None) -> list[torch.Tensor]:
    """Log-probability of every token given those before it, [T] for each sequence; 0 for the first, which has none."""
    ids = pad_sequence(
        [torch.tensor(sequence) for sequence in sequences], batch_first=True
    )  # [B, T], padded at the end
    ids = ids if tau is None else tau[ids]
    logits = model(ids, use_cache=False).logits[:, :-1].float()  # [B, T − 1, V]
    found = -cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    found = torch.cat((torch.zeros(len(ids), 1), found), 1)
    return [row[: len(sequence)] for row, sequence in zip(found, sequences, strict=True)]


def _over_documents(
    sums: np.ndarray[Any, np.dtype[np.float64]], tokens: Sequence[int], of: Callable[[Any], Any], unit: str
) -> Figure:
    count = np.array(tokens, dtype=np.float64)
    draws = resamples(len(sums), 0)  # [R, n]
    low, high = np.quantile(of(draws @ sums / (draws @ count)), TAILS)
    return Figure(float(of(sums.sum() / count.sum())), float(low), float(high), len(sums), unit)
