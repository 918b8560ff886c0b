"""Projection of every row on a public subspace.

Public and linear: in general position every token keeps a distinct image even in a few dimensions, and an attacker projects
its candidates too. Compression alone is no privacy.

Notation: T positions, D hidden size, R rank.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch

from cutlayer.defences.channel import Channel, Deterministic
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.public_map import PublicMap
from cutlayer.defences.scale import public_states
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_SEQUENCES: Final = 32


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    rank: Annotated[int, msgspec.Meta(ge=1)]
    basis: Literal["random", "principal"] = "random"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None


@lru_cache(maxsize=4)
def random_basis(width: int, rank: int, seed: int) -> torch.Tensor:
    """R orthonormal columns [D, R] of a uniformly random subspace, float64."""
    generator = torch.Generator().manual_seed(seed)
    basis: torch.Tensor = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64)).Q
    return basis


@lru_cache(maxsize=4)  # of a few heads; `public_states` hands out the same tensor each time
def principal_basis(states: torch.Tensor, rank: int) -> torch.Tensor:
    """The R directions [D, R] that hold most of the squared length of states [N, D], float64.

    Not centred: a projection on a subspace has no mean to add back.
    """
    rows = states.double()
    directions: torch.Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors  # [D, D], eigenvalues ascending
    return directions[:, -rank:]


class _LowRank:
    card = Card(
        name="lowrank",
        source="Low-rank bottleneck, a usual compression baseline (principal components or random projection); no single paper",
        threat_model="Server sees the exact coordinates of every position's hidden state in a subspace it knows.",
        guarantee="None: a public function of the hidden state, matched by running it on candidates.",
        parameters={
            "rank": "dimensions of the subspace",
            "basis": "random (default), or principal: main directions of hidden states of public pseudo-random tokens",
            "seed": "of the random basis, default 0; public",
        },
        deviations="Nothing is trained; the wire carries D values per position, not rank.",
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        return PublicMap(_projection(spec, head), str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        return Deterministic(_projection(spec, head), precision, exact=spec.read(_Options).rank >= 4)


def _projection(spec: Spec, head: Head | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows [T, D] → their projections [T, D]."""
    chosen = spec.read(_Options)

    def checked(width: int) -> None:
        if chosen.rank > width:
            raise InputError(f"defence {str(spec)!r}: rank {chosen.rank} exceeds the hidden size {width}")

    if head is not None:
        checked(head.embedding().shape[-1])
    if chosen.basis == "random":

        def project(rows: torch.Tensor) -> torch.Tensor:
            checked(rows.shape[-1])
            return _onto(random_basis(rows.shape[-1], chosen.rank, chosen.seed or 0), rows)

        return project
    if head is None or chosen.seed is not None:
        raise InputError(f"defence {str(spec)!r}: basis=principal needs the client's layers, and takes no seed")
    states = public_states(head, _SEQUENCES)  # [N, D]
    if chosen.rank > len(states):
        raise InputError(f"defence {str(spec)!r}: rank exceeds the {len(states)} states that basis=principal looks at")
    basis = principal_basis(states, chosen.rank)
    return lambda rows: _onto(basis, rows)


def _onto(basis: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    basis = basis.to(rows.device)
    return (rows.double() @ basis @ basis.T).to(rows.dtype)


MECHANISM: Final = _LowRank()
