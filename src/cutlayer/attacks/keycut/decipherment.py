"""A5, substitution decipherment: τ is one fixed substitution, so neighbours of an id betray it as frequencies do.

From a first match by frequency among the commonest ids, rounds of re-matching compare, for every permuted id, its distribution
of left and right neighbours, named as the last round named them, with those of the plain ids in the attacker's text. The number
of ids under study doubles from stage to stage. No weights are used.

Notation: K ids under study.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.kind import AttackKind

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    ids: Annotated[int, msgspec.Meta(ge=8, le=20_000)] = 1024
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 6
    prior: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.05


class _Statistics:
    """Of the K commonest ids of some documents."""

    def __init__(self, documents: Sequence[Sequence[int]], most: int) -> None:
        counts = Counter(token for document in documents for token in document)
        chosen = counts.most_common(most)
        self.ids = torch.tensor([token for token, _ in chosen])  # [K], the commonest first
        self.shares = torch.tensor([count for _, count in chosen]) / max(1, counts.total())  # [K]
        place = {token: rank for rank, (token, _) in enumerate(chosen)}
        # −1 stands for an id that is not under study, and for the seam between two documents
        ranks = torch.tensor([place.get(token, -1) for document in documents for token in (*document, -1)])
        both = (ranks[:-1] >= 0) & (ranks[1:] >= 0)
        at = ranks[:-1][both] * len(chosen) + ranks[1:][both]
        pairs = torch.bincount(at, minlength=len(chosen) ** 2).reshape(len(chosen), -1).float()  # [K, K]
        # square roots of shares: inner products are then overlaps of distributions (Bhattacharyya)
        self.after = (pairs / pairs.sum(1, keepdim=True).clamp_min(1)).sqrt()  # [K, K] rows: what follows an id
        self.before = (pairs / pairs.sum(0).clamp_min(1)).sqrt().T  # [K, K] rows: what precedes it


class _Reader:
    def __init__(self, plain: _Statistics, options: _Options) -> None:
        self._plain = plain
        self._options = options

    def read(self, held: Held) -> Claim | NoClaim:
        log = given(held.log)
        permuted = _Statistics(log, self._options.ids)
        most = min(len(permuted.ids), len(self._plain.ids))
        named = torch.arange(min(most, 64))  # [k] rank among plain ids of each rank among permuted ones
        studied = len(named)
        while True:
            for _ in range(self._options.rounds):
                named = self._rematch(permuted, named, studied)
            if studied == most:
                break
            studied = min(2 * studied, most)
        seen = torch.tensor(sorted({token for document in log for token in document}))
        plain = torch.full_like(seen, -1)
        plain[torch.searchsorted(seen, permuted.ids[:most])] = self._plain.ids[named]
        return Claim(seen, plain, {"ids_in_log": len(seen), "ids_named": most})

    def _rematch(self, permuted: _Statistics, named: torch.Tensor, studied: int) -> torch.Tensor:
        """The next match of the `studied` commonest ids, [studied], from that of fewer or as many."""
        known = len(named)
        overlap = torch.zeros(studied, studied)
        for theirs, ours in ((permuted.after, self._plain.after), (permuted.before, self._plain.before)):
            translated = torch.zeros(studied, studied)
            translated[:, named] = theirs[:studied, :known]
            overlap += translated @ ours[:studied, :studied].T / 2
        rarity = self._plain.shares[:studied].log() - permuted.shares[:studied, None].log()
        return _one_to_one(overlap - self._options.prior * rarity.square())


def _one_to_one(similarity: torch.Tensor) -> torch.Tensor:
    """A column for every row of a square matrix, each once: mutual favourites first, then those of what is left; [K]."""
    chosen = torch.full((len(similarity),), -1)
    left = similarity.clone()
    while (free := chosen < 0).any():
        favourite, admirer = left.argmax(1), left.argmax(0)  # [K], [K]
        mutual = free & (admirer[favourite] == torch.arange(len(left)))
        chosen[mutual] = favourite[mutual]
        left[mutual] = -torch.inf
        left[:, favourite[mutual]] = -torch.inf
    return chosen


def _prepare(options: _Options, public: Public) -> Reader:
    return _Reader(_Statistics(given(public.corpus), options.ids), options)


ATTACK: Final = AttackKind(
    Card(
        name="decipherment",
        label="A5",
        source="Substitution decipherment as in arXiv 2603.01499, Table 4 (SDA)",
        needs=frozenset({"corpus", "log"}),
        parameters={
            "ids": "K, commonest ids under study; rarer ones are not named",
            "rounds": "re-matchings at each stage",
            "prior": "weight of the difference in frequency",
        },
        facts={"ids_in_log": "different ids seen", "ids_named": "of these, named"},
        deviations="The paper's decoder is not described; this is an iterative matching of bigram distributions of our own.",
        expected="Well above frequency matching once the log is long enough for bigrams to repeat.",
    ),
    _Options,
    _prepare,
)
