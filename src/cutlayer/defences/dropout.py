"""Dropout of coordinates: each leaves with probability 1 − p, rescaled, or not at all.

At D = 576 even p = 0.9 leaves some 57 exact equations per token, and another session leaves others: over N sessions a
coordinate stays hidden with probability pᴺ.

Notation: N sessions, T positions, C candidates, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.defences.channel import Channel, Matching, relative_length
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.keyed_noise import KeyedNoise

if TYPE_CHECKING:
    import torch

    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    p: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Dropout:
    """Dropout of one session.

    Args:
        coins: keyed source.
        p: probability that a coordinate is dropped.
        spec: how it was specified.
    """

    def __init__(self, coins: KeyedNoise, p: float, spec: str) -> None:
        self._coins = coins
        self._p = p
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`."""
        coins = self._coins.uniform(positions.prefixes, hidden.shape[-1]).to(hidden.device)  # [T, D]
        return (hidden.double() / (1 - self._p)).where(coins >= self._p, 0.0).to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class DropoutChannel(Matching):
    """Coordinates that left in any session must agree; where the coins fell does not depend on the hidden state.

    If nothing left at all, every candidate explains it.

    Args:
        p: probability that a coordinate is dropped.
        precision: relative rounding of the wire.
    """

    def __init__(self, p: float, precision: float) -> None:
        super().__init__(precision)
        self._p = p

    def distance(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Matching.distance`."""
        known = self.transmitted(released)  # [D]
        target = self.estimate(released)  # [D]
        misses = (candidates - target).where(known, 0.0)  # [C, D]
        return relative_length(misses, target)

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.estimate`: the value itself where it left, 0 where it did not."""
        survived = (released != 0).sum(0)  # [T, D]
        return (1 - self._p) * released.sum(0) / survived.clamp_min(1)

    def transmitted(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.transmitted`."""
        return (released != 0).any(0)


class _Dropout:
    card = Card(
        name="dropout",
        source="Srivastava et al. 2014, applied to what is released; a usual baseline, no single paper as a defence",
        threat_model="Server sees a random share of the coordinates of every position, exactly; not the session secret.",
        guarantee="None: the surviving coordinates are exact equations in the token.",
        parameters={"p": "probability that a coordinate is dropped, in (0, 1); survivors are multiplied by 1/(1 − p)"},
        deviations="The mask is a keyed function of session secret and tokens up to the position, so a resend repeats it.",
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        return Dropout(KeyedNoise(session, "dropout"), spec.read(_Options).p, str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        return DropoutChannel(spec.read(_Options).p, precision)


MECHANISM: Final = _Dropout()
