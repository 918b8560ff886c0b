"""No defence: hidden states leave as they are. The reference every other row is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.defences.channel import Channel, Deterministic
from cutlayer.defences.defence import Card, Defence

if TYPE_CHECKING:
    import torch

    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret


class _NoOptions(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _None:
    card = Card(
        name="none",
        source="–",
        threat_model="The server sees exact hidden states of every position, and how many there are.",
        guarantee="None. Published attacks recover most of a prompt from them when the weights are public.",
        parameters={},
        deviations="–",
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        spec.read(_NoOptions)
        return self

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        spec.read(_NoOptions)
        return Deterministic(lambda hidden: hidden, precision)

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`."""
        return hidden

    def describe(self) -> str:
        """See `Defence.describe`."""
        return "none"


MECHANISM: Final = _None()
