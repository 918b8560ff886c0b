"""Ridge inverter: one matrix from hidden states back to embeddings, then the nearest token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.linear_map import BALANCE, PENALTY, LinearMap
from cutlayer.attacks.table import TokenTable, top_confidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.defences.channel import Channel

_SHOWN: Final = 64


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    penalty: Annotated[float, msgspec.Meta(gt=0, lt=1e3)] = PENALTY
    balance: Annotated[float, msgspec.Meta(ge=0, le=2)] = BALANCE


class _RidgeReader:
    def __init__(self, linear: LinearMap, table: TokenTable, channel: Channel) -> None:
        self._linear = linear
        self._table = table
        self._channel = channel

    def read(self, observation: Observation) -> Guess:
        rows = self._channel.estimate(observation.released)  # [T, D]
        best = self._table.nearest(self._linear(rows), _SHOWN)
        return Guess(best.tokens[:, 0], top_confidence(best.cosine))


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    table = TokenTable(given(threat.embedding))
    linear = LinearMap(given(threat.auxiliary), table, options.penalty, options.balance)
    return _RidgeReader(linear, table, threat.channel)


ATTACK: Final = AttackKind(
    AttackCard(
        name="ridge",
        source="Linear inversion, the usual baseline of learned inverters; no single paper",
        threat_model="Owns text and can send it through the same cut and defence; knows the public token table, no weights.",
        needs=frozenset({"auxiliary", "embedding"}),
        parameters={
            "penalty": "λ as a share of the mean eigenvalue of HᵀPH",
            "balance": "exponent b of the weight (count of the type)^−b of a pair; 0 is the plain regression",
        },
        deviations="Pairs are weighted by the rarity of their token (ours; balance=0 switches it off).",
        expected="Top-1 over the whole vocabulary at least 95 % at k ≤ 2, 60 % at k = 8, undefended (prediction).",
    ),
    _Options,
    _prepare,
)
