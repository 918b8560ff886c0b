"""Amplification factors: how far a perturbation of the hidden state moves what an inverter returns.

ActInv (Fan, Liu, Wang, Chen, arXiv 2605.23158) introduces a "perturbation amplification factor" per layer; its formula could
not be read, so every definition here is derived. Linearise the client's layers about the truth, h + δ = F(e) + J(ê − e): a
converged matching attack returns e + J⁻¹δ, a damped or early-stopped one a filtered version of it.

Two opposite readings of "amplification during backpropagation" exist and both are reported: ‖J⁻¹δ‖/‖δ‖, largest along the
smallest singular directions of J, and the spurious gradient ‖Jᵀδ‖/‖δ‖, largest along the largest.

Footguns: all of these speak of continuous attacks. The secret is discrete, and a search over tokens flips only where
`token_amplification` exceeds 1. A number of 10²⁰ here does not stop a search. `rms` and `largest` come from the inverse
because decomposing J itself returns rounding noise there; see `jacobian`.

Notation: D hidden size, s singular values of J, σ_max the largest, C candidate tokens, P perturbations.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

DAMPING: Final = 1e-3
"""√λ as a share of σ_max."""
STEPS: Final = (50, 100, 300, 1000)


class Amplification(NamedTuple):
    """Readings of one Jacobian. All but `largest` are root mean squares over isotropic δ, dimensionless."""

    rms: float
    """PAF_rms = ‖J⁻¹‖_F / √D: a converged attack."""
    largest: float
    """PAF_max = 1 / σ_min: its worst direction."""
    damped: float
    """PAF_λ: ‖(JᵀJ + λI)⁻¹Jᵀδ‖ / ‖δ‖ with λ = (DAMPING σ_max)², an LSMR or regularised attack."""
    stopped: dict[int, float]
    """PAF_K: K gradient steps of size 1 / σ_max²."""
    gradient: float
    """PAF_bp = ‖J‖_F / √D: size of the gradient that δ injects at the true input."""
    scale: float
    """RMS(h) / RMS(E). A PAF times this is relative: share of an embedding's size per share of the hidden state's (rPAF)."""


def amplification(
    block: torch.Tensor,
    inverse: torch.Tensor,
    state: torch.Tensor,
    embedding_rms: float,
    steps: Sequence[int] = STEPS,
    damping: float = DAMPING,
) -> Amplification:
    """Read the amplification factors off a Jacobian.

    Args:
        block: J [D, D].
        inverse: J⁻¹ [D, D], as `jacobians` multiplies it up.
        state: the hidden state [D].
        embedding_rms: root mean square entry of the token table.
        steps: values of K.
        damping: √λ / σ_max.

    Raises:
        InputError: J is zero.
    """
    singular = torch.linalg.svdvals(block)
    top = float(singular[0])
    if top == 0:
        raise InputError("a Jacobian of zeros has no amplification: the state does not depend on its token")
    return Amplification(
        rms=_rms(inverse) * math.sqrt(len(block)),
        largest=float(torch.linalg.matrix_norm(inverse, 2)) if inverse.isfinite().all() else math.inf,
        damped=_rms(singular / (singular.square() + (damping * top) ** 2)),
        stopped={count: _rms(stopped_filter(singular, count, 1 / top**2)) for count in steps},
        gradient=_rms(singular),
        scale=_rms(state) / embedding_rms,
    )


def stopped_filter(singular: torch.Tensor, steps: int, rate: float) -> torch.Tensor:
    """φ_K(s) = (1 − (1 − ηs²)^K) / s: what K gradient steps make of a singular direction; 0 at s = 0.

    Peaks at s* = 1.121 / √(ηK) with value 0.638 √(ηK): directions far below s* are invisible to an attack that stops early.

    Args:
        singular: s, any shape.
        steps: K.
        rate: η, at most 1 / σ_max².
    """
    remaining = torch.log1p(-(rate * singular.square()).clamp(max=1))
    return torch.where(singular > 0, -torch.expm1(steps * remaining) / singular, 0.0)


def damped_inverse(block: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """(JᵀJ + λI)⁻¹Jᵀ, [D, D], with λ = (damping · σ_max)²."""
    penalty = (damping * torch.linalg.matrix_norm(block, 2)) ** 2
    gram = block.mT @ block
    gram.diagonal().add_(penalty)
    inverse: torch.Tensor = torch.linalg.solve(gram, block.mT)
    return inverse


def weakest_direction(inverse: torch.Tensor) -> torch.Tensor:
    """The unit left singular vector [D] of J that belongs to its smallest singular value, from J⁻¹ [D, D]."""
    # J⁻¹ = V S⁻¹ Uᵀ: what J shrinks most, its inverse stretches most.
    direction: torch.Tensor = torch.linalg.eigh(inverse.mT @ inverse).eigenvectors[:, -1]
    return direction


def directional(inverse: torch.Tensor, perturbation: torch.Tensor) -> torch.Tensor:
    """PAF_dir = ‖J⁺δ‖ / ‖δ‖ of perturbations [P, D], [P]."""
    factors: torch.Tensor = (perturbation @ inverse.mT).norm(dim=-1) / perturbation.norm(dim=-1)
    return factors


def token_amplification(shift: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """How far a shift goes towards the decision boundary of the competitor it favours most, [P]; above 1 the token flips.

    max over v' of 2⟨shift, step⟩ / ‖step‖². With shift = J⁺δ and steps E[v'] − E[v] this is TAF_c, the continuous attack;
    with shift = δ and steps F(v') − F(v) it is TAF_s, the search. Over a subset of competitors it is a lower bound.

    Args:
        shift: [P, D].
        steps: [C, D]; competitors that coincide with the truth (zero steps) are left out.

    Raises:
        InputError: no competitor differs from the truth.
    """
    squares = steps.square().sum(-1)  # [C]
    if not squares.any():
        raise InputError("token amplification needs a competitor that differs from the true token")
    progress = (2 * (shift @ steps.mT) / squares).masked_fill(squares == 0, -torch.inf)  # [P, C]
    return progress.amax(-1)


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
