"""The ridge regression from hidden states to token embeddings: an attack of its own, and the first guess of others.

W = (HᵀH + λI)⁻¹HᵀE with H standardised per coordinate and E the centred table rows of the true tokens; λ is a share of the
mean eigenvalue of HᵀH. Attention-sink positions, whose norm dwarfs all others, would dominate the fit and are left out of it.

Notation: N pairs, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from cutlayer.attacks.attack import Auxiliary
    from cutlayer.attacks.table import TokenTable

SINK_RATIO: Final = 10.0
"""A row longer than this many medians is a sink."""


class LinearMap:
    """Hidden states → centred embeddings, fitted.

    Args:
        auxiliary: pairs to fit on.
        table: the token table.
        penalty: λ as a share of the mean eigenvalue.
    """

    def __init__(self, auxiliary: Auxiliary, table: TokenTable, penalty: float = 1e-2) -> None:
        rows = auxiliary.released.flatten(0, 1)  # [N, D]
        ids = auxiliary.ids.flatten()  # [N]
        lengths = rows.norm(dim=-1)
        ordinary = lengths <= SINK_RATIO * lengths.median()
        rows, ids = rows[ordinary], ids[ordinary]
        self._mean = rows.mean(0)
        self._deviation = rows.std(0).clamp_min(1e-6 * float(rows.std()))
        standard = (rows - self._mean) / self._deviation
        gram = standard.T @ standard  # [D, D]
        gram.diagonal().add_(penalty * gram.diagonal().mean())
        self._weight = torch.linalg.solve(gram, standard.T @ table.centred[ids])  # [D, D]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Centred embeddings [N, D] of hidden states [N, D]."""
        return (rows - self._mean) / self._deviation @ self._weight
