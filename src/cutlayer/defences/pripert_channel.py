"""What an attacker knows of PriPert: its length at every position, and for the static reading the subspace it lies in.

Notation: N sessions, T positions, C candidates, D hidden size, r rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.defences.channel import EXACT_TOLERANCE, Repeated

if TYPE_CHECKING:
    from cutlayer.defences.pripert_directions import Inside

_SHELL_TOLERANCE: Final = 2e-6
"""Standard deviation by which the distance between what left and a hidden state differs between two float32 computations, as
a share of what left; 1e-7 is usual. One number decides here, not D of them, so it must be sharp."""
_SHELL_LIMIT: Final = 2.5e-5
"""The same, beyond which a candidate is refused: a few tokens, whose states are far longer than others, differ by up to 6e-6."""
_ROUNDING: Final = 0.25
"""The same under a coarser wire, over its relative rounding: errors of D coordinates mostly cancel in a length."""
_STRAY: Final = 1e-3
"""Weight of the law that takes over where no candidate meets the distance."""
_ENOUGH: Final = 16
"""Dimensions outside the subspace from which on a wrong candidate practically never fits all of them."""


def sparsified(rows: torch.Tensor, keep: float | None) -> torch.Tensor:
    """Rows [T, D] with all but the `keep` share of largest magnitudes set to zero; None keeps all."""
    if keep is None:
        return rows
    largest = rows.abs().topk(max(1, round(keep * rows.shape[-1])), dim=-1).indices
    return torch.zeros_like(rows).scatter(-1, largest, rows.gather(-1, largest))


class SubspaceChannel(Repeated):
    """y = h + β‖h‖·u, u a random unit vector of a public subspace.

    Outside the subspace nothing was added: there, candidates are compared exactly. Within it, only the distance is known.

    Args:
        directions: orthonormal, [D, r].
        beta: β.
        keep: see `sparsified`.
        precision: relative rounding of the wire.
        inside: how undefended states lie in the subspace, for the point estimate.
    """

    def __init__(
        self, directions: torch.Tensor, beta: float, keep: float | None, precision: float, inside: Inside
    ) -> None:
        self.exact = directions.shape[0] - directions.shape[1] >= _ENOUGH
        self._directions = directions
        self._beta = beta
        self._keep = keep
        self._tolerance = max(EXACT_TOLERANCE, 4 * precision)
        self._inside = inside

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.log_likelihood`; Gaussian in both relative residuals, as wide as the tolerance."""
        outside, ring = self._residuals(released, candidates)
        return -0.5 * ((outside / self._tolerance).square() + (ring / self._tolerance).square().sum(0))

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.accepts`."""
        outside, ring = self._residuals(released, candidates)
        return (outside <= self._tolerance) & (ring.abs() <= self._tolerance).all(0)

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.estimate`. Within the subspace, the best linear estimate from the mean and spread of undefended states.

        Where the perturbation dwarfs that spread this projects the subspace out.
        """
        mean = released.mean(0)  # [T, D]
        basis = self._directions.to(mean)
        share = self._beta**2 / len(released)
        noise = share / (1 + share) * mean.square().sum(-1, keepdim=True)  # [T, 1]
        weight = self._inside.spread / (self._inside.spread + noise).clamp_min(1e-12)
        off = mean @ basis - self._inside.centre.to(mean)  # [T, r]
        return mean - (1 - weight) * off @ basis.T

    def _residuals(self, released: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outside the subspace [C], and the distance within it less what it should be [N, C]; over the length released."""
        basis = self._directions.to(released)
        states = sparsified(candidates.to(released), self._keep)  # [C, D]
        found, expected = released @ basis, states @ basis  # [N, r], [C, r]
        scale = released.norm(dim=-1).mean().clamp_min(1e-12)
        target = (released - found @ basis.T).mean(0)  # [D]
        outside = (states - expected @ basis.T - target).norm(dim=-1)
        distance = torch.stack([(row - expected).norm(dim=-1) for row in found])  # [N, C]
        return outside / scale, (distance - self._beta * states.norm(dim=-1)) / scale


class SphereChannel(Repeated):
    """y = h + β‖h‖·u, u a unit vector that depends on the whole prefix and the session.

    A candidate is only a hidden state here, without the prefix from which the direction could be computed again. What it must
    explain is the distance, which is exact, so the law is that of the distance alone. A density of y would not do: it rewards
    nearness with the D-th power, and a decoy's state is nearer than the true one. After a token that was read wrongly no
    candidate meets the distance, and the nearest is as good as any.

    Args:
        beta: β.
        keep: see `sparsified`.
        precision: relative rounding of the wire.
    """

    def __init__(self, beta: float, keep: float | None, precision: float) -> None:
        self._beta = beta
        self._keep = keep
        self._tolerance = max(_SHELL_TOLERANCE, _ROUNDING * precision)

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.log_likelihood`; normal about the right distance, or half-normal as wide as Gaussian noise would be."""
        size = released.shape[-1]
        distance, radius = self._distances(released, candidates)  # [N, C], [C]
        width = self._tolerance * released.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)  # [N, 1]
        right = -0.5 * ((distance - radius) / width).square() - 0.5 * math.log(2 * math.pi) - width.log()
        stray = -0.5 * size * (distance / radius).square() + 0.5 * math.log(2 * size / math.pi) - radius.log()
        return torch.logaddexp(right + math.log1p(-_STRAY), stray + math.log(_STRAY)).sum(0)

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.accepts`."""
        distance, radius = self._distances(released, candidates)
        limit = max(_SHELL_LIMIT, 4 * self._tolerance) * released.norm(dim=-1, keepdim=True)
        fits: torch.Tensor = (distance - radius).abs() <= limit  # [N, C]
        return fits.all(0)

    def _distances(self, released: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From what left to each candidate [N, C], and what it should be [C]; float64."""
        states = sparsified(candidates.to(released), self._keep).double()  # [C, D]
        distance = torch.stack([(row - states).norm(dim=-1) for row in released.double()])
        return distance, self._beta * states.norm(dim=-1).clamp_min(1e-12)
