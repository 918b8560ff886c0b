"""Algorithm 1 of the paper: keys of the hidden basis that are random per writer and per reader, and exact up to RMSNorm.

    B = U + λV,  P̂ᵢ = [B Cᵢ E]·Z,  Q̂ⱼ = Zᵀ·[B⁻¹; F; Gⱼ],  P̂ᵢQ̂ⱼ = BB⁻¹ + CᵢF + EGⱼ = I

Source: Lin et al. 2026 (arXiv 2603.01499), Algorithm 1 and Appendix D, where G is called D.

Deviations:
    The paper takes columns of C from null(Fᵀ) and rows of G from null(E); the shapes fit only rows of C and columns of G.
    The scale of the coefficients in those null spaces is not given. Unit Gaussians give keys of condition 32 to 86 and an
    unusable model; 1/√d gives 1.5 to 2.7, and is used.
    One Cᵢ serves all writers unless `per_writer` is set. Plain residual writes cancel each other, independent Cᵢ do not: with
    them the length of the obfuscated stream drifts from layer to layer, and RMSNorm sees it.
    κ is s√(d/D) with s² the mean of ‖xP̂‖²/‖x‖² over directions x; the paper has neither the factor nor a rule for ε.

Notation: d plain hidden size, h half of the extra channels, D = d + 2h.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from cutlayer.obfuscation.hidden_keys import times
from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from cutlayer.obfuscation.hidden_keys import Rows
    from cutlayer.types import Secret


class Algorithm1:
    """Keys of one export.

    Args:
        seed: of the export.
        d: plain hidden size.
        wide: D, larger than d by a multiple of 4 (h is even).
        lam: λ, how far B is from orthogonal.
        per_writer: draw a fresh C for every writer.
    """

    def __init__(self, seed: Secret, d: int, wide: int, lam: float, *, per_writer: bool) -> None:
        h = (wide - d) // 2
        stream = Stream(seed, "Z")
        spread = 1 / math.sqrt(d)
        b = stream.orthogonal(d) + lam * spread * stream.normal(d, d)  # [d, d]
        e1, e2 = stream.normal(d, h // 2) * spread, stream.normal(h // 2, h) * spread
        f1, f2 = stream.normal(h, h // 2) * spread, stream.normal(h // 2, d) * spread
        z = stream.orthogonal(wide)
        z_b, z_c, z_e = z[:d], z[d : d + h], z[d + h :]  # [d, D], [h, D], [h, D]
        self._seed, self._d, self._per_writer = seed, d, per_writer
        self._write = b @ z_b + e1 @ (e2 @ z_e)  # [B 0 E]·Z, [d, D]
        self._read = torch.linalg.inv(b).T @ z_b + f2.T @ (f1.T @ z_c)  # [B⁻¹; F; 0]ᵀ·Z, [d, D]
        self._write_free = _complement(f1).T @ z_c  # what the rows of C may be made of, [h/2, D]
        self._read_free = _complement(e2.T).T @ z_e  # the same of Gᵀ, [h/2, D]
        squares = self._p("embedding").square().sum() / d
        self.kappa = math.sqrt(float(squares) / wide * d)

    def writer(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.writer`."""
        return times(self._p(label), dtype)

    def reader(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.reader`; a fresh G for every reader."""
        return times(self._read + self._coefficients(f"{label}/G") @ self._read_free, dtype)

    def _p(self, label: str) -> torch.Tensor:
        """P̂ of a writer, [d, D]."""
        own = self._coefficients(f"{label}/C" if self._per_writer else "C")
        return torch.addmm(self._write, own, self._write_free)

    def _coefficients(self, label: str) -> torch.Tensor:
        """Of the free directions of one writer or reader, [d, h/2]."""
        return Stream(self._seed, label).normal(self._d, len(self._write_free)) / math.sqrt(self._d)


def _complement(basis: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span what is orthogonal to the columns of `basis`, [h, h/2] → [h, h/2]."""
    q: torch.Tensor = torch.linalg.qr(basis, mode="complete")[0]
    return q[:, basis.shape[1] :]
