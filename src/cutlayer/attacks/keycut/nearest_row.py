"""A0, nearest row: rows of the obfuscated embedding against those of the base, as if the hidden basis were no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.matching import most_similar, unit
from cutlayer.attacks.kind import AttackKind, NoOptions

if TYPE_CHECKING:
    from cutlayer.attacks.keycut.weights import Weights


class _Reader:
    def __init__(self, base: Weights) -> None:
        self._base = base

    def read(self, held: Held) -> Claim | NoClaim:
        if held.export.hidden_size != self._base.hidden_size:
            return NoClaim(
                f"rows of {held.export.hidden_size} and {self._base.hidden_size} values cannot be compared as they are"
            )
        match = most_similar(unit(held.export.embedding()[held.asked]), unit(self._base.embedding()))
        return Claim(held.asked, match.best, {"cosine": float(match.similarity.mean())})


def _prepare(options: NoOptions, public: Public) -> Reader:
    return _Reader(given(public.base))


ATTACK: Final = AttackKind(
    Card(
        name="nearest-row",
        label="A0",
        source="The nearest-neighbour attack of arXiv 2603.01499, Table 1",
        needs=frozenset({"base"}),
        parameters={},
        facts={"cosine": "mean cosine with the row that was named"},
        deviations="None known; the paper does not say how rows of different length are compared, and they are not here.",
        expected="Chance under dense hidden keys (paper: 0). It says nothing about the attacks that undo the keys.",
    ),
    NoOptions,
    _prepare,
)
