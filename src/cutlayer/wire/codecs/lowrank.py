"""Coordinates of a row in a public subspace, themselves sent by another codec.

Not registered: which subspace holds a model's hidden states has to be measured on that model, and both sides must hold the very
same matrix. So it comes from the deployment, as a plug-in installed on both machines, and its digest is part of the name: sides
with different matrices have no codec in common, instead of a wrong answer.

    # pyproject.toml of the plug-in
    [project.entry-points."cutlayer.codecs"]
    lowrank512-bf16-1f0c5d3a9b7e2468 = "my_subspace:CODEC"

    # my_subspace.py
    CODEC = LowRankCodec(load_file(FILE)["basis"], BF16)     # CODEC.name is what to register it as

Footgun: what lies outside the subspace is lost, and residual streams are not low-rank. On SmolLM2-135M (cut 2:-2) even the 512
main directions of 576 cost more than int4, at nearly three times its bytes, and a random subspace is useless; `docs/wire.md`
has the figures.

Notation: T positions, D hidden size, R rank.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.errors import InputError, NonFiniteError

if TYPE_CHECKING:
    from cutlayer.wire.codecs.codec import Codec

_TOLERANCE: Final = 1e-4
"""Of BᵀB to the identity; float32 and D in the thousands stay below 1e-5."""
_DIGEST_BYTES: Final = 8


class LowRankCodec:
    """See the module.

    Args:
        basis: R orthonormal columns [D, R].
        within: carries the coordinates.

    Raises:
        InputError: columns are not orthonormal.
    """

    precision = 1.0
    """A row may lie outside the subspace altogether."""

    def __init__(self, basis: torch.Tensor, within: Codec) -> None:
        basis = basis.detach().to(device="cpu", dtype=torch.float32).contiguous()
        if basis.ndim != 2 or not 1 <= basis.shape[1] <= basis.shape[0]:
            raise InputError(f"a basis is [D, R] with 1 ≤ R ≤ D, not {list(basis.shape)}")
        error = (basis.T @ basis - torch.eye(basis.shape[1])).abs().max()
        if not error <= _TOLERANCE:
            raise InputError(f"the columns of a basis must be orthonormal; these are off by {float(error):.3g}")
        self._basis = basis
        self._within = within
        digest = hashlib.blake2b(basis.numpy().tobytes(), digest_size=_DIGEST_BYTES).hexdigest()
        self.name = f"lowrank{basis.shape[1]}-{within.name}-{digest}"

    def row_bytes(self, hidden_size: int) -> int:
        """Those of R values."""
        width, rank = self._basis.shape
        if hidden_size != width:
            raise InputError(f"{self.name} is for hidden states of size {width}, not {hidden_size}")
        return self._within.row_bytes(rank)

    def encode(self, hidden: torch.Tensor) -> bytes:
        """See `Codec.encode`."""
        rows = hidden.detach().to(device="cpu", dtype=torch.float32)  # [T, D]
        self.row_bytes(rows.shape[-1])
        return self._within.encode(rows @ self._basis)

    def decode(self, data: bytes | memoryview, hidden_size: int) -> torch.Tensor:
        """See `Codec.decode`; float32."""
        self.row_bytes(hidden_size)
        coordinates = self._within.decode(data, self._basis.shape[1]).float()  # [T, R]
        hidden = coordinates @ self._basis.T  # [T, D]
        if not bool(hidden.isfinite().all()):
            raise NonFiniteError("payload holds coordinates whose sum overflows")
        return hidden
