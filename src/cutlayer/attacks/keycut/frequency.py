"""A5, frequency matching: the n-th most frequent permuted id of the log is taken for the n-th most frequent plain one.

No weights at all: it works on any model, and on any transformation that maps an id to one id.

Notation: N asked ids.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.kind import AttackKind, NoOptions

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Reader:
    def __init__(self, ranked: list[int]) -> None:
        self._ranked = ranked

    def read(self, held: Held) -> Claim | NoClaim:
        seen = by_frequency(given(held.log))
        named = dict(zip(seen, self._ranked, strict=False))
        ids = torch.tensor(seen)
        return Claim(ids, torch.tensor([named.get(token, -1) for token in seen]), {"ids_in_log": len(seen)})


def by_frequency(documents: Sequence[Sequence[int]]) -> list[int]:
    """Ids, the most frequent first."""
    return [token for token, _ in Counter(token for document in documents for token in document).most_common()]


def _prepare(options: NoOptions, public: Public) -> Reader:
    return _Reader(by_frequency(given(public.corpus)))


ATTACK: Final = AttackKind(
    Card(
        name="frequency",
        label="A5",
        source="Token-frequency matching of arXiv 2603.01499, Table 4 (TFMA)",
        needs=frozenset({"corpus", "log"}),
        parameters={},
        facts={"ids_in_log": "different ids seen"},
        deviations="Every rank is named, and only the named id counts; the paper also counts the ten and hundred around it.",
        expected="Grows with the log and with the likeness of the attacker's text (paper: 3.2 % top-10, same distribution).",
    ),
    NoOptions,
    _prepare,
)
