"""A6, internal states: from the hidden states of the running export to ids, with and without the keys that CLX recovers.

The attacker runs its base on text of its own, fits a ridge regression from states of that layer to plain embeddings, and
applies it to the export's states once these are in the plain basis. Getting them there is what differs:

    keys=clx     by the key that cancellation recovers
    keys=none    blindly: principal axes of both sets of states are taken for each other, in order of variance, each turned so
                 that its third moment has the same sign

An id's occurrences vote, since τ is one substitution.

Notation: P states, d plain hidden size, D that of the export.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch

from cutlayer.attacks.attack import Auxiliary, given
from cutlayer.attacks.keycut.attack import Card, Claim, Held, NoClaim, Public, Reader
from cutlayer.attacks.keycut.cancellation import cancel
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.linear_map import LinearMap
from cutlayer.attacks.table import TokenTable
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.attacks.keycut.weights import Weights

_LONGEST: Final = 128
"""Tokens of a document that are run; later ones look like these."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    keys: Literal["clx", "none"] = "clx"
    depth: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    states: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 8192


class _Reader:
    def __init__(self, base: Weights, corpus: Sequence[Sequence[int]], options: _Options) -> None:
        self._base, self._options = base, options
        self._table = TokenTable(base.embedding())
        ids, self._own = _states(base, corpus, options)  # [P], [P, d]
        self._linear = LinearMap(Auxiliary(ids[None], self._own[None]), self._table)

    def read(self, held: Held) -> Claim | NoClaim:
        if held.export.directory is None:
            return NoClaim("there is no checkpoint that could be run")
        ids, states = _states(held.export, given(held.log), self._options)  # [P], [P, D]
        plain = (
            states @ cancel(self._base, held.export, layers=4).stream.undo
            if self._options.keys == "clx"
            else _aligned_blindly(states, self._own)
        )
        nearest = self._table.nearest(self._linear(plain))
        votes: dict[int, Counter[int]] = defaultdict(Counter)
        for token, named in zip(ids.tolist(), nearest.tokens[:, 0].tolist(), strict=True):
            votes[token][named] += 1
        chosen = [count.most_common(1)[0][0] for count in votes.values()]
        facts = {"cosine": float(nearest.cosine.mean()), "states": len(states)}
        return Claim(torch.tensor(list(votes)), torch.tensor(chosen), facts)


@torch.inference_mode()
def _states(
    weights: Weights, documents: Sequence[Sequence[int]], options: _Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [P] and the hidden states [P, D] before layer depth·L, of the first documents with enough tokens."""
    last = weights.layers
    head = load_client(given(weights.directory), Cut(int(options.depth * last), last, last), torch.float32).head
    ids: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    for document in documents:
        ids.append(torch.tensor(document[:_LONGEST]))
        states.append(head(ids[-1][None], head.new_cache())[0].float())
        if sum(map(len, ids)) >= options.states:
            break
    return torch.cat(ids), torch.cat(states)


def _aligned_blindly(states: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """States [P, D] in the plain basis of states [P', d], from moments alone, [P, d]."""
    theirs, ours = _axes(states, own.shape[1]), _axes(own, own.shape[1])
    coordinates = (states - states.mean(0)) @ theirs / ((states - states.mean(0)) @ theirs).std(0).clamp_min(1e-12)
    return own.mean(0) + coordinates * ((own - own.mean(0)) @ ours).std(0) @ ours.T


def _axes(states: torch.Tensor, count: int) -> torch.Tensor:
    """Principal axes, the largest variance first, turned to a positive third moment, [D, count]."""
    centred = states - states.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :count]
    turned: torch.Tensor = axes * torch.where((centred @ axes).pow(3).sum(0) < 0, -1.0, 1.0)
    return turned


def _prepare(options: _Options, public: Public) -> Reader:
    return _Reader(given(public.base), given(public.corpus), options)


ATTACK: Final = AttackKind(
    Card(
        name="states",
        label="A6",
        source="Internal-state inversion of arXiv 2603.01499, Table 3 (ISA); ridge inversion of this project",
        needs=frozenset({"base", "corpus", "log"}),
        parameters={
            "keys": "clx: recovered by cancellation; none: both bases are aligned by their moments",
            "depth": "layers before the state, as a share of all",
            "states": "states fitted on, and most states of the log that are read",
        },
        facts={"cosine": "mean cosine of regressed states with the embedding named", "states": "how many were read"},
        deviations="Ridge regression, not gradient descent on the input: a position-wise reader, so a lower bound.",
        expected="Without keys a few of the commonest tokens (16 to 25 % of traffic before the first layer, 5 % at half depth), "
        "high with them (paper without its keys: 40 % from hidden states).",
    ),
    _Options,
    _prepare,
)
