"""A1, vocabulary matching: products of two matrices in which the hidden keys cancel, row by row, sorted, and a vote.

Products (Table 8 of the paper), with E the embedding, H the output head, both as rows of tokens:

    gate E·Gᵀ   up E·Uᵀ   router E·Rᵀ   down H·Wᵀ   head E·Hᵀ   scores E·(W_qᵀW_k)·Eᵀ

Notation: V vocabulary, N asked ids, K columns of a product, Q sorted values kept, P products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.matching import Match, closest, sorted_rows
from cutlayer.attacks.kind import AttackKind
from cutlayer.obfuscation.layout import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cutlayer.attacks.keycut.weights import Weights

_KEPT: Final = 128
"""Q."""
_AT_ONCE: Final = 1 << 26


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    layers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 3
    columns: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)] = 8192


class _Reader:
    def __init__(self, base: Weights, options: _Options) -> None:
        self._options = options
        everyone = torch.arange(base.vocabulary)
        self._tables = [_sorted(left[everyone], right) for left, right in _products(base, options)]

    def read(self, held: Held) -> Claim | NoClaim:
        matches = [
            closest(_sorted(left[held.asked], right), table)
            for (left, right), table in zip(_products(held.export, self._options), self._tables, strict=True)
        ]
        best, agreement = _vote(matches)
        return Claim(held.asked, best, {"products": len(matches), "agreement": float(agreement.mean())})


def _products(weights: Weights, options: _Options) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of tokens [V, D], and the rows [K, D] they are multiplied with."""
    embedding, head = weights.embedding(), weights.head()
    last = weights.layers - 1
    for layer in sorted({round(last * i / max(1, options.layers - 1)) for i in range(options.layers)}):
        for role in (Role.GATE, Role.UP, Role.ROUTER):
            rows = weights.rows(role, layer)
            if len(rows):
                yield embedding, rows
        yield head, weights.rows(Role.DOWN, layer)
        if weights.vocabulary <= options.columns:
            yield embedding, embedding @ weights.scores(layer).T
    if weights.vocabulary <= options.columns:
        yield embedding, head


def _sorted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Evenly spaced values of every sorted row of the product of [N, D] and [K, D]; [N, Q]."""
    kept = torch.linspace(0, len(right) - 1, min(_KEPT, len(right))).round().long()
    return torch.cat(
        [sorted_rows(chunk @ right.T)[:, kept] for chunk in torch.split(left, max(1, _AT_ONCE // len(right)))]
    )


def _vote(matches: list[Match]) -> tuple[torch.Tensor, torch.Tensor]:
    """The id with the most votes and its share of them, [N] each."""
    votes = torch.stack([match.best for match in matches])  # [P, N]
    # leads of different products have different units
    leads = torch.stack([match.margin / match.margin.mean().clamp_min(1e-30) for match in matches])
    counts = (votes[:, None] == votes[None]).sum(1)  # [P, N]
    chosen = (counts + 0.5 * torch.tanh(leads)).argmax(0, keepdim=True)  # [1, N]
    return votes.gather(0, chosen)[0], counts.gather(0, chosen)[0] / len(matches)


def _prepare(options: _Options, public: Public) -> Reader:
    return _Reader(given(public.base), options)


ATTACK: Final = AttackKind(
    Card(
        name="vocabulary-matching",
        label="A1",
        source="The vocabulary-matching attack of arXiv 2603.01499, Appendix F and Table 8 (VMA)",
        needs=frozenset({"base"}),
        parameters={
            "layers": "layers whose products vote, evenly spaced",
            "columns": "longest row that is sorted: head and scores have V columns, and are left out where V is larger",
        },
        facts={"products": "how many voted", "agreement": "mean share of the votes that the named id got"},
        deviations=(
            f"Of a sorted row, at most {_KEPT} evenly spaced values are compared. One vote per product and layer; ties go to the "
            "clearest lead. The products of feed-forward blocks with embedding and head are the paper's; those of two "
            "feed-forward blocks are not in its list, see clx."
        ),
        expected="All ids without noise; falls with α_e (paper: 2.6 to 25 % at its defaults, above 30 % at α_e = 0.5).",
    ),
    _Options,
    _prepare,
)
