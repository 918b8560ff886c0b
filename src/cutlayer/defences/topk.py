"""Top-k sparsification: only the largest coordinates of a row leave.

Reported grids keep 50 to 5 % of the coordinates (95–98 % dropped in VFLAIR); ActInv still reconstructs "with high fidelity"
under sparsification (published, arXiv 2605.23158). Which coordinates are large is itself evidence.

Notation: N sessions, T positions, C candidates, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.defences.channel import Channel, Matching, relative_length
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.public_map import PublicMap

if TYPE_CHECKING:
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    keep: Annotated[float, msgspec.Meta(gt=0, le=1)]


def largest(rows: torch.Tensor, keep: float) -> torch.Tensor:
    """Rows [T, D] with all but the share `keep` of largest magnitudes set to zero; at least one stays."""
    count = max(1, round(keep * rows.shape[-1]))
    kept = rows.abs().topk(count, dim=-1).indices  # [T, K]
    return torch.zeros_like(rows).scatter(-1, kept, rows.gather(-1, kept))


class TopKChannel(Matching):
    """Coordinates that left must agree, those that did not must be smaller than the smallest that did.

    Comparing `largest` of a candidate instead would reject the truth whenever rounding swaps the two coordinates at the edge.
    """

    def distance(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Matching.distance`."""
        target = released.mean(0)  # [D]
        kept = target != 0  # [D]
        edge = target.abs().where(kept, torch.inf).amin()
        misses = torch.where(kept, candidates - target, (candidates.abs() - edge).clamp_min(0))  # [C, D]
        return relative_length(misses, target)

    def transmitted(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.transmitted`."""
        return (released != 0).any(0)


class _TopK:
    card = Card(
        name="topk",
        source="Top-k sparsification, the usual compression baseline of split inference; no single paper",
        threat_model="Server sees which coordinates of every position were largest, and their exact values.",
        guarantee="None: a public function of the hidden state, matched by running it on candidates.",
        parameters={"keep": "share of the D coordinates that leave, in (0, 1]"},
        deviations="Zeros in place of the dropped coordinates; the wire's size is not reduced.",
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        keep = spec.read(_Options).keep
        return PublicMap(lambda rows: largest(rows, keep), str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        spec.read(_Options)
        return TopKChannel(precision)


MECHANISM: Final = _TopK()
