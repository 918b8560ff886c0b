"""What the next token loses when hidden states are changed between a client's two parts: by rounding of weights or of the wire.

Figures are means over tokens with intervals over documents: tokens of one text fall together.

Notation: T tokens, D hidden size, V vocabulary, n documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import track

from cutlayer.audit.metrics.documents import TAILS, over_documents, resamples
from cutlayer.models.parts import ClientParts
from cutlayer.records.record import Figure, exact

Middle = Callable[[torch.Tensor], torch.Tensor]
"""States [1, T, D] that leave the head → states that reach the tail, both float32."""


def next_token(
    client: ClientParts, ways: dict[str, Middle], texts: Sequence[Sequence[int]]
) -> tuple[dict[str, Figure], dict[str, list[Any]]]:
    """Figures ``WAY_perplexity_increase``, ``_kl`` and ``_greedy_agreement``, and the sums per document behind them.

    Args:
        client: head and tail.
        ways: by name; the first is what the others are compared with.
        texts: token ids, at least two of each.
    """
    reference, *others = ways
    counts = [len(text) - 1 for text in texts]
    loss: dict[str, list[float]] = {name: [] for name in ways}
    kl: dict[str, list[float]] = {name: [] for name in others}
    same: dict[str, list[float]] = {name: [] for name in others}
    for text in track(texts, description="next token"):
        ids = torch.tensor([text])
        with torch.inference_mode():
            hidden = client.head(ids, client.head.new_cache())  # [1, T, D]
            found = {
                name: client.tail(way(hidden), client.tail.new_cache())[0, :-1].log_softmax(-1)  # [T − 1, V]
                for name, way in ways.items()
            }
        plain = found[reference]
        for name, ours in found.items():
            loss[name].append(-float(ours.gather(-1, ids[0, 1:, None]).sum()))
            if name != reference:
                kl[name].append(float((plain.exp() * (plain - ours)).sum()))
                same[name].append(float((plain.argmax(-1) == ours.argmax(-1)).double().mean()))
    total = sum(counts)
    figures = {f"{reference}_perplexity": exact(float(np.exp(sum(loss[reference]) / total)), "perplexity", total)}
    samples: dict[str, list[Any]] = {
        "tokens_per_document": counts,
        f"{reference}_nats_per_document": loss[reference],
    }
    for name in others:
        gain = np.subtract(loss[name], loss[reference])
        figures[f"{name}_perplexity_increase"] = _per_token(gain, counts, "relative", np.expm1)
        figures[f"{name}_kl"] = _per_token(np.array(kl[name]), counts, "nats")
        agreement = over_documents(same[name], counts)
        assert isinstance(agreement, Figure)
        figures[f"{name}_greedy_agreement"] = agreement
        samples[f"{name}_nats_per_document"] = loss[name]
        samples[f"{name}_kl_nats_per_document"] = kl[name]
        samples[f"{name}_greedy_agreement_per_document"] = same[name]
    return figures, samples


def _per_token(
    sums: np.ndarray[Any, Any], counts: Sequence[int], unit: str, of: Callable[[Any], Any] = np.asarray
) -> Figure:
    """A function of the mean per token, of sums [n] over documents."""
    drawn = resamples(len(sums), 0)  # [R, n]
    low, high = np.quantile(of(drawn @ sums / (drawn @ np.array(counts))), TAILS)
    return Figure(float(of(sums.sum() / sum(counts))), float(low), float(high), len(sums), unit)
