"""A3, known plaintext: a ridge regression from the obfuscated rows of known ids to their plain rows, applied to all others.

Known ids come from a chat template, a system prompt, or a question the attacker asked itself.

Notation: M known pairs, N asked ids, V vocabulary, d plain hidden size, D that of the export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch

from cutlayer.attacks.attack import given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.matching import same_token, unit
from cutlayer.attacks.kind import AttackKind

if TYPE_CHECKING:
    from cutlayer.attacks.keycut.weights import Weights

_PENALTIES: Final = tuple(10.0**exponent for exponent in range(-6, 3))
"""Candidates for λ as a share of the mean squared length of a row."""
_HELD_OUT: Final = 5
"""Every so-many-th pair decides between them."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    pairs: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 300
    rows: Literal["embedding", "head", "both"] = "both"


class _Reader:
    def __init__(self, base: Weights, options: _Options) -> None:
        self._options = options
        self._plain = _tables(base, options)

    def read(self, held: Held) -> Claim | NoClaim:
        known = given(held.known)
        if len(known) < self._options.pairs:
            return NoClaim(f"{self._options.pairs} known pairs are needed, and there are {len(known)}")
        plain, permuted = known[: self._options.pairs].T  # [M] each
        undone = []
        for table, obfuscated in zip(self._plain, _tables(held.export, self._options), strict=True):
            centre = table.mean(0)
            undone.append(centre + _ridge(obfuscated[permuted], table[plain] - centre, obfuscated[held.asked]))
        match = same_token(undone, self._plain)
        return Claim(
            held.asked, match.best, {"cosine": float(match.similarity.mean()), "lead": float(match.margin.mean())}
        )


def _tables(weights: Weights, options: _Options) -> list[torch.Tensor]:
    tables = {"embedding": weights.embedding, "head": weights.head}
    return [read() for name, read in tables.items() if options.rows in (name, "both")]


def _ridge(known: torch.Tensor, plain: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Plain rows [N, d] of asked rows [N, D], from known rows [M, D] and their centred plain rows [M, d]."""
    held_out = torch.arange(len(known)) % _HELD_OUT == 0
    tried = {}
    for penalty in _PENALTIES:
        guessed = _solve(known[~held_out], plain[~held_out], known[held_out], penalty)
        tried[penalty] = float((unit(guessed) * unit(plain[held_out])).sum())
    return _solve(known, plain, asked, max(tried, key=tried.__getitem__))


def _solve(known: torch.Tensor, plain: torch.Tensor, asked: torch.Tensor, penalty: float) -> torch.Tensor:
    """In the space of pairs, of which there are fewer than dimensions or not many more."""
    centre = known.mean(0)
    known, asked = known - centre, asked - centre
    gram = known @ known.T  # [M, M]
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    weights: torch.Tensor = torch.linalg.solve(gram.double(), plain.double()).float()  # [M, d]
    return asked @ (known.T @ weights)


def _prepare(options: _Options, public: Public) -> Reader:
    return _Reader(given(public.base), options)


ATTACK: Final = AttackKind(
    Card(
        name="known-plaintext",
        label="A3",
        source="Ridge inversion of known rows, a usual baseline (the paper's IMA trains under other keys)",
        needs=frozenset({"base", "known"}),
        parameters={"pairs": "M, known ids", "rows": "tables that are regressed: embedding, head, or both"},
        facts={"cosine": "mean cosine of regressed rows with those named", "lead": "by which these lead the second"},
        deviations="λ is chosen on every fifth known pair.",
        expected="With both tables more than with the embedding alone, whose noise is larger at the paper's defaults.",
    ),
    _Options,
    _prepare,
)
