"""No defence: hidden states leave as they are. The reference every other row is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.defences.defence import Card, Defence, read_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

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

    def build(self, options: dict[str, str], session: Secret) -> Defence:
        """See `Mechanism.build`."""
        read_options("none", options, _NoOptions)
        return self

    def release(self, hidden: torch.Tensor, prefixes: Sequence[bytes]) -> torch.Tensor:
        """See `Defence.release`."""
        return hidden

    def describe(self) -> str:
        """See `Defence.describe`."""
        return "none"


MECHANISM: Final = _None()
