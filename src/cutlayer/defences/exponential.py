"""The attacker's view of noise whose density falls exponentially with a norm: p(z) ∝ exp(−rate·‖z‖).

With the L1 norm these are D independent Laplace values, with the L2 norm the noise of metric privacy. For either, rate·‖z‖ is
Gamma(D, 1), which is what acceptance rests on.

Notation: N sessions, C candidates, D hidden size.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import torch

from cutlayer.defences.channel import Repeated
from cutlayer.defences.scale import clipped

_QUANTILE: Final = 4.75
"""Standard normal value exceeded once in a million times."""


class ExponentialChannel(Repeated):
    """y = clip(h) + z, p(z) ∝ exp(−rate·‖z‖).

    Args:
        rate: 1 / unit of the hidden state.
        order: 1 or 2, which norm.
        clip: L2 norm rows are scaled down to before the noise, or None.
    """

    def __init__(self, rate: float, order: Literal[1, 2], clip: float | None = None) -> None:
        self.rate = rate
        self._order = float(order)
        self._clip = clip

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.log_likelihood`."""
        return -self.rate * self._lengths(released, candidates)

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.accepts`: two tests, each failed by the truth about once in a million times.

        The lengths of the residuals follow their exact law, which decides alone in one session; over many sessions the
        residual of the mean is the sharper test.
        """
        sessions, size = released.shape
        lengths = self.rate * self._lengths(released, candidates) <= gamma_limit(sessions * size)  # [C]
        # Moments of one noise vector: variance v per coordinate; E‖z‖⁴ adds `excess`·D·v²/N to the Gaussian 2·D·v²
        variance, excess = (2.0, 3.0) if self._order == 1.0 else (size + 1.0, 2.0)
        variance /= self.rate**2 * sessions
        shape = size / (2 + excess / sessions)  # of the Gamma law with mean D·v and that spread
        squares = (clipped(candidates, self._clip) - released.mean(0)).square().sum(-1)  # [C]
        return lengths & (squares <= variance * size * gamma_limit(shape) / shape)

    def _lengths(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Sum of the residuals' norms over sessions, [C]."""
        mode = "donot_use_mm_for_euclid_dist"  # the fast path loses half the digits where they are needed
        distances = torch.cdist(clipped(candidates, self._clip), released, p=self._order, compute_mode=mode)  # [C, N]
        return distances.sum(-1)


def gamma_limit(shape: float) -> float:
    """What a Gamma(shape, 1) value exceeds once in a million times (Wilson & Hilferty 1931, their cube-root rule).

    Examples:
        >>> round(gamma_limit(32), 1)  # scipy.stats.gamma(32).isf(1e-6) is 66.4
        66.5
    """
    return shape * (1 - 1 / (9 * shape) + _QUANTILE / (3 * math.sqrt(shape))) ** 3
