"""Secret orders: the coordinates of every position, the positions of a frame, or both, leave shuffled.

Permutation-based protocols show such states to a server. A permutation keeps every value, so it is undone by sorting: a
candidate's coordinates, sorted, agree with the right row's, and a row that fits no candidate stands for a later position.

`release` is called once per frame, so an order of rows is one within a frame: a prompt of T tokens hides its positions
among T, a decoding step of one token hides nothing. The same frame again leaves in the same order. Footgun: the same
tokens in other frames (a resend after a lost connection may be cut elsewhere) leave in other orders, and tell the server
which rows belong to which frame; orders of coordinates have no such weakness.

Notation: N sessions, T positions, C candidates, D hidden size.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import torch

from cutlayer.defences.channel import Channel, Matching, relative_length
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.keyed_noise import KeyedNoise

if TYPE_CHECKING:
    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

Axis = Literal["columns", "rows", "both"]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    axis: Axis


class Permutation:
    """Secret orders of one session.

    Args:
        session: secret of at least 32 bytes.
        axis: what is shuffled.
        spec: how it was specified.
    """

    def __init__(self, session: Secret, axis: Axis, spec: str) -> None:
        self._columns = KeyedNoise(session, "permute columns") if axis != "rows" else None
        self._rows = KeyedNoise(session, "permute rows") if axis != "columns" else None
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`; rows are shuffled among those of one call."""
        released = hidden
        if self._columns is not None:
            order = self._columns.uniform(positions.prefixes, hidden.shape[-1]).argsort(-1)  # [T, D], one per row
            released = released.gather(-1, order.to(hidden.device))
        if self._rows is not None:
            frame = blake2b(b"".join(positions.prefixes)).digest()
            order = self._rows.uniform([frame], len(hidden))[0].argsort()  # [T]
            released = released[order.to(hidden.device)]
        return released

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class PermutedChannel(Matching):
    """A candidate agrees with what left once both are sorted.

    Lengths are compared as everywhere (`relative_length`) and not in the paper's L1.

    Args:
        axis: what is shuffled.
        precision: relative rounding of the wire.
    """

    def __init__(self, axis: Axis, precision: float) -> None:
        super().__init__(precision)
        self.ordered = axis == "columns"
        self._comparable = _identity if axis == "rows" else _ascending

    def distance(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Matching.distance`."""
        target = self._comparable(released).mean(0)  # [D]
        return relative_length(self._comparable(candidates) - target, target)

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.estimate`: coordinates in ascending order, rows in that of the first session."""
        rows = self._comparable(released)  # [N, T, D]
        if not self.ordered:
            rows = torch.stack([session[torch.cdist(rows[0], session, p=1).argmin(-1)] for session in rows])
        return rows.mean(0)


def _identity(rows: torch.Tensor) -> torch.Tensor:
    return rows


# Kept by identity: the same candidates are held against row after row, and sorting them costs as much as 30 comparisons.
@lru_cache(maxsize=2)
def _ascending(rows: torch.Tensor) -> torch.Tensor:
    return rows.sort(-1).values


class _Permute:
    card = Card(
        name="permute",
        source=(
            "The permutations of permutation-based private inference, as attacked in Thomas et al. 2025 "
            "(arXiv 2505.18332); read second-hand"
        ),
        threat_model=(
            "Server sees every value of every position, out of order; not the session secret. For measuring, not for serving: "
            "the protocols that reveal such states compute on them with the permuting party's help, but a server that runs "
            "plain layers cannot, and answers nonsense."
        ),
        guarantee=(
            "None. Sorting undoes an order of coordinates, and matching rows to candidates one of positions. Rows are "
            "shuffled within a frame: a frame of one row is not, and the same tokens in other frames narrow the order down."
        ),
        parameters={
            "axis": (
                "columns: the D coordinates, in an order of its own for every position; rows: the T positions of a frame; both"
            )
        },
        deviations=(
            "Orders are keyed functions of the session secret and the tokens (of a frame: all up to its end), so a resend of "
            "the same frame repeats them. Not the unrestricted shuffle of all T·D values, which the paper leaves open."
        ),
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        return Permutation(session, spec.read(_Options).axis, str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        return PermutedChannel(spec.read(_Options).axis, precision)


MECHANISM: Final = _Permute()
