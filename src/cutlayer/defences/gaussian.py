"""Gaussian noise on every released hidden state.

Three ways to set it: a plain standard deviation; one relative to the length of hidden states at the cut; or calibrated to
(ε, δ) by the analytic Gaussian mechanism.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.defences.channel import Channel, Repeated
from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.defences.scale import clipped, median_norm
from cutlayer.errors import InputError

if TYPE_CHECKING:
    import torch

    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    sigma: _Positive | None = None
    relative: _Positive | None = None
    epsilon: _Positive | None = None
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    clip: _Positive | None = None


def analytic_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Smallest standard deviation that makes the Gaussian mechanism (ε, δ)-differentially private.

    Balle & Wang 2018 (arXiv 1805.06530), Theorem 8: σ is private iff
    Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ) ≤ δ. The left side falls with σ, so bisection finds the root.

    Examples:
        >>> round(analytic_sigma(1.0, 1e-5, 1.0), 4)
        3.7306
    """

    def excess(sigma: float) -> float:
        a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        return _phi(a - b) - math.exp(min(epsilon, 700.0) + _log_phi(-a - b)) - delta

    low, high = 1e-9 * sensitivity, sensitivity
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


class GaussianNoise:
    """Gaussian noise of one session.

    Args:
        noise: keyed source.
        sigma: standard deviation per coordinate.
        clip: L2 norm every row is scaled down to before the noise, or None.
        spec: how it was specified.
    """

    def __init__(self, noise: KeyedNoise, sigma: float, clip: float | None, spec: str) -> None:
        self.sigma = sigma
        self.clip = clip
        self._noise = noise
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`. Noise is added in float64 and rounded once."""
        rows = clipped(hidden.double(), self.clip)  # [T, D]
        noise = self._noise.normal(positions.prefixes, hidden.shape[-1]).to(hidden.device)  # [T, D]
        return (rows + self.sigma * noise).to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class GaussianChannel(Repeated):
    """y = clip(h) + N(0, σ² I).

    Args:
        sigma: standard deviation per coordinate.
        clip: as `GaussianNoise`.
    """

    def __init__(self, sigma: float, clip: float | None) -> None:
        self.sigma = sigma
        self.clip = clip

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.log_likelihood`. The mean over sessions is a sufficient statistic."""
        return -0.5 * len(released) * self._squares(released, candidates) / self.sigma**2

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.accepts`: the residual is no longer than the noise is but once in a million times.

        Under strong noise wrong tokens pass as well; what a search may stop at is then no longer unique, and only the
        likelihood over all candidates decides.
        """
        size = released.shape[-1]
        # χ² with D degrees of freedom: mean D, standard deviation √2D, 4.75 of which leave one in a million
        limit = self.sigma**2 / len(released) * (size + 4.75 * math.sqrt(2 * size))
        return self._squares(released, candidates) <= limit

    def _squares(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        return (clipped(candidates, self.clip) - released.mean(0)).square().sum(-1)  # [C]


class _Gaussian:
    card = Card(
        name="gaussian",
        source="Analytic Gaussian mechanism, Balle & Wang 2018 (arXiv 1805.06530), Theorem 8",
        threat_model=(
            "Server sees the noisy hidden state of every position, may know the weights, σ and the clip; not the session secret."
        ),
        guarantee=(
            "With epsilon, delta and clip: (ε, δ)-DP for replacing the clipped hidden state of ONE position. A token changes "
            "the states of all later positions too, so a prompt of n tokens is not protected by ε but by the composition over "
            "every position it changed. With sigma alone: none."
        ),
        parameters={
            "sigma": "standard deviation per coordinate, in units of the hidden state",
            "relative": "root-mean-square length of the noise over the median length of a hidden state at this cut",
            "epsilon": "ε per position; needs delta and clip",
            "delta": "δ per position",
            "clip": "L2 norm of a row before the noise; sensitivity is twice this",
        },
        deviations=(
            "Noise is a keyed function of the session secret and the tokens up to the position, so a resend repeats it and "
            "averages nothing away; the paper draws it afresh. float64 sampling, rounded once: no defence against attacks on "
            "the lowest bits of floating-point noise (Mironov 2012)."
        ),
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        sigma, clip = _resolved(spec, head)
        return GaussianNoise(KeyedNoise(session, "gaussian"), sigma, clip, str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`. The wire's rounding is far below any noise worth adding."""
        return GaussianChannel(*_resolved(spec, head))


def _resolved(spec: Spec, head: Head | None) -> tuple[float, float | None]:
    """Standard deviation and clip."""
    chosen = spec.read(_Options)
    calibrated = (chosen.epsilon, chosen.delta)
    if chosen.sigma is not None and chosen.relative is None and calibrated == (None, None):
        return chosen.sigma, chosen.clip
    if chosen.relative is not None and chosen.sigma is None and calibrated == (None, None):
        length, width = median_norm(head, "gaussian")
        return chosen.relative * length / math.sqrt(width), chosen.clip
    if chosen.sigma is None and chosen.relative is None and chosen.epsilon and chosen.delta and chosen.clip:
        return analytic_sigma(chosen.epsilon, chosen.delta, 2 * chosen.clip), chosen.clip
    raise InputError(
        f"defence {str(spec)!r}: give one of sigma or relative (with or without clip), or epsilon, delta and clip together"
    )


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """log Φ(x); the asymptotic series where Φ underflows."""
    if x > -37:
        return math.log(_phi(x))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) - 1 / (x * x)


MECHANISM: Final = _Gaussian()
