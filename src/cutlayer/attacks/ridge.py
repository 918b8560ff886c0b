"""Ridge inverter: one matrix from hidden states back to embeddings, then the nearest token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.attacks.attack import Attack, AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.linear_map import LinearMap
from cutlayer.attacks.table import TokenTable, top_confidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.defences.channel import Channel
    from cutlayer.registry import Spec

_SHOWN: Final = 64


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    penalty: Annotated[float, msgspec.Meta(gt=0, lt=1e3)] = 1e-2


class _RidgeReader:
    def __init__(self, linear: LinearMap, table: TokenTable, channel: Channel) -> None:
        self._linear = linear
        self._table = table
        self._channel = channel

    def read(self, observation: Observation) -> Guess:
        rows = self._channel.estimate(observation.released)  # [T, D]
        best = self._table.nearest(self._linear(rows), _SHOWN)
        return Guess(best.tokens[:, 0], top_confidence(best.cosine))


class _RidgeAttack:
    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    @property
    def card(self) -> AttackCard:
        return ATTACK.card

    def prepare(self, threat: Threat, progress: Callable[[float], None]) -> Reader:
        table = TokenTable(given(threat.embedding))
        return _RidgeReader(LinearMap(given(threat.auxiliary), table, self._penalty), table, threat.channel)


class _Ridge:
    card = AttackCard(
        name="ridge",
        source="Linear inversion, the usual baseline of learned inverters; no single paper",
        threat_model="Owns text and can send it through the same cut and defence; knows the public token table, no weights.",
        needs=frozenset({"auxiliary", "embedding"}),
        parameters={"penalty": "λ as a share of the mean eigenvalue of HᵀH"},
        deviations="–",
        expected="Top-1 over the whole vocabulary at least 95 % at k ≤ 2, 60 % at k = 8, undefended (prediction).",
    )

    def build(self, spec: Spec) -> Attack:
        """See `Kind.build`."""
        return _RidgeAttack(spec.read(_Options).penalty)


ATTACK: Final = _Ridge()
