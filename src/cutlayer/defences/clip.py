"""L2 norm clipping: rows longer than a bound are scaled down to it.

The direction is preserved, and the direction gives the token away: this protects nothing. It stands here because noise is
calibrated to a clip, and so that what the clip alone does can be seen. A published audit recovers 99.98 % of the tokens even
under norm-clipped noise at the strength that had been proposed, for this very reason (second-hand).

Notation: T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.defences.channel import Channel, Deterministic
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.public_map import PublicMap
from cutlayer.defences.scale import clipped, median_norm
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    norm: _Positive | None = None
    relative: _Positive | None = None


class _Clip:
    card = Card(
        name="clip",
        source="Norm clipping as in DP-SGD (Abadi et al. 2016, arXiv 1607.00133), without the noise",
        threat_model="Server sees the exact direction of every position's hidden state, and its length up to the bound.",
        guarantee="None: the direction is preserved, and it identifies the token.",
        parameters={
            "norm": "largest L2 norm of a row, in units of the hidden state",
            "relative": "the same over the median length of a hidden state at this cut",
        },
        deviations="–",
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        norm = _norm(spec, head)
        return PublicMap(lambda rows: clipped(rows, norm), str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        norm = _norm(spec, head)
        return Deterministic(lambda rows: clipped(rows, norm), precision)


def _norm(spec: Spec, head: Head | None) -> float:
    chosen = spec.read(_Options)
    if chosen.norm is not None and chosen.relative is None:
        return chosen.norm
    if chosen.relative is not None and chosen.norm is None:
        return chosen.relative * median_norm(head, "clip").norm
    raise InputError(f"defence {str(spec)!r}: give one of norm or relative")


MECHANISM: Final = _Clip()
