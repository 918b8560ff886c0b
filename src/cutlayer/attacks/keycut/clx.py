"""A2, cross-layer cancellation (CLX): recover the keys from products without keys, undo them, compare rows.

Notation: V vocabulary, d plain hidden size, D that of the export, N asked ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.cancellation import cancel
from cutlayer.attacks.keycut.matching import same_token
from cutlayer.attacks.kind import AttackKind

if TYPE_CHECKING:
    import torch

    from cutlayer.attacks.keycut.weights import Weights


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    layers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    rows: Literal["embedding", "head", "both"] = "both"


class _Reader:
    def __init__(self, base: Weights, options: _Options) -> None:
        self._base = base
        self._options = options

    def read(self, held: Held) -> Claim | NoClaim:
        keys = cancel(self._base, held.export, self._options.layers)
        facts = {"channel_cosine": keys.order.cosine, "channels_named": keys.order.distinct}
        undone: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        if self._options.rows != "head":
            undone.append(held.export.embedding()[held.asked] @ keys.stream.undo)  # [N, d]
            plain.append(self._base.embedding() @ keys.stream.seen)  # [V, d]
        if self._options.rows != "embedding":
            undone.append(held.export.head()[held.asked] @ keys.reader.undo)
            plain.append(self._base.head() @ keys.reader.seen)
        match = same_token(undone, plain)
        facts |= {
            "cosine": float(match.similarity.mean()),
            "lead": float(match.margin.mean()),
            "ids_named": len(set(match.best.tolist())) / len(match.best),
        }
        return Claim(held.asked, match.best, facts)


def _prepare(options: _Options, public: Public) -> Reader:
    return _Reader(given(public.base), options)


ATTACK: Final = AttackKind(
    Card(
        name="clx",
        label="A2",
        source="This project; see `cutlayer.attacks.keycut.cancellation`. Weight directions of a public base are matched in "
        "ArrowMatch (USENIX Security 2025) too, which the paper does not evaluate.",
        needs=frozenset({"base"}),
        parameters={
            "layers": "layers whose equations the keys are solved from",
            "rows": "which tables are compared: embedding, head, or the sum of both cosines",
        },
        facts={
            "channel_cosine": "mean cosine of aligned FFN products: near 1 means the keys fell",
            "channels_named": "share of FFN channels that are named once aligned; 1 for a permutation",
            "cosine": "mean cosine of undone rows with those named, per table",
            "lead": "by which the named row leads the second",
            "ids_named": "different plain ids among those named, over asked ids",
        },
        deviations="Not in the paper.",
        expected="Nearly all ids at any noise on embedding and head that leaves an answer worth reading.",
    ),
    _Options,
    _prepare,
)
