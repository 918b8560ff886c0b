"""A4, behavioural fingerprint: repeat one id, sort the logits that follow; both models answer alike, whatever the basis.

No algebra on weights: running the export is enough. The first ids asked of it are probed (an audit asks the most
frequent ones of the log first) and compared with the most frequent ids of the attacker's own text.

Notation: V vocabulary, N probed ids, C candidates, Q values of a signature.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.matching import closest, sorted_rows
from cutlayer.attacks.kind import AttackKind

if TYPE_CHECKING:
    from cutlayer.attacks.keycut.weights import Weights

_REPEATS: Final = 3
_BATCH: Final = 32
_LARGEST: Final = 256
"""Largest logits in a signature, where models differ most; as many evenly spaced ones of all."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    probes: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)] = 200
    candidates: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)] = 1000


class _Reader:
    def __init__(self, base: Weights, candidates: torch.Tensor, probes: int) -> None:
        self._candidates = candidates  # [C]
        self._probes = probes
        signatures = _signatures(base, candidates)  # [C, Q]
        self._spread = signatures.std(0).clamp_min(1e-6)
        self._table = signatures / self._spread

    def read(self, held: Held) -> Claim | NoClaim:
        if held.export.directory is None:
            return NoClaim("there is no checkpoint that could be run")
        asked = held.asked[: self._probes]
        match = closest(_signatures(held.export, asked) / self._spread, self._table)
        return Claim(asked, self._candidates[match.best], {"lead": float(match.margin.mean())})


def _prepare(options: _Options, public: Public) -> Reader:
    counts = Counter(token for document in given(public.corpus) for token in document)
    common = [token for token, _ in counts.most_common(options.candidates)]
    return _Reader(given(public.base), torch.tensor(common), options.probes)


@torch.inference_mode()
def _signatures(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Values of the sorted logits after each id repeated, [N, Q]."""
    logging.disable_progress_bar()  # the caller shows its own
    model = AutoModelForCausalLM.from_pretrained(weights.directory, dtype=torch.float32, local_files_only=True).eval()
    spaced = torch.linspace(0, weights.vocabulary - 1, min(_LARGEST, weights.vocabulary)).round().long()
    found = []
    for batch in torch.split(ids, _BATCH):
        logits = model(batch[:, None].expand(-1, _REPEATS), logits_to_keep=1, use_cache=False).logits[:, 0]  # [B, V]
        rising = sorted_rows(logits)
        found.append(torch.cat((rising[:, spaced], rising[:, -_LARGEST:]), 1))
    return torch.cat(found)


ATTACK: Final = AttackKind(
    Card(
        name="fingerprint",
        label="A4",
        source="This project",
        needs=frozenset({"base", "corpus"}),
        parameters={
            "probes": "N, how many of the asked ids are probed, in their order",
            "candidates": "C, most frequent ids of the attacker's text they are compared with",
        },
        facts={"lead": "half the difference of squared distances between the second best and the named id"},
        deviations="Not in the paper.",
        expected="SmolLM2, 8,192 candidates: 90 % of the probes without noise, 26 % at (0.02, 0.01), 1 % at the paper's noise.",
    ),
    _Options,
    _prepare,
)
