"""The token table in coordinates in which its rows spread alike in every direction.

    z = cov(E)^−½ (e − mean(E))

A step of descent on z moves along each direction as far as the table spreads there. And an embedding found from noisy states
is known well only where the table spreads far, so that the nearest row is to be looked for here: at k = 4 of SmolLM2-135M
under Gaussian noise as long as the hidden states, half of the tokens were found so and a third by cosines of embeddings.

Notation: N vectors, D hidden size, V vocabulary, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cutlayer.attacks.table import TokenTable

if TYPE_CHECKING:
    from cutlayer.attacks.table import Nearest


class Whitening:
    """The change of coordinates.

    Args:
        table: [V, D].
    """

    def __init__(self, table: torch.Tensor) -> None:
        rows = table.detach().float()
        self._mean = rows.mean(0)  # [D]
        centred = rows - self._mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
        spread = values.clamp_min(1e-6 * float(values.max())).sqrt()  # [D]
        self._colour = vectors * spread @ vectors.T  # [D, D]
        self._whiten = vectors / spread @ vectors.T  # [D, D]
        self._rows = TokenTable(self.white(rows))

    def white(self, embeddings: torch.Tensor) -> torch.Tensor:
        """z [..., D] of embeddings [..., D]."""
        white: torch.Tensor = (embeddings - self._mean) @ self._whiten
        return white

    def embeddings(self, white: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., D] of z [..., D]."""
        embeddings: torch.Tensor = self._mean + white @ self._colour
        return embeddings

    def nearest(self, embeddings: torch.Tensor, count: int = 1) -> Nearest:
        """The `count` tokens whose z is most similar to that of embeddings [N, D]."""
        return self._rows.nearest(self.white(embeddings), count)
