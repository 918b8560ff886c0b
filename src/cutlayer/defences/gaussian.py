"""Gaussian noise on every released hidden state.

Two ways to set it: a plain standard deviation, or calibrated to (ε, δ) by the analytic Gaussian mechanism.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.defences.defence import Card, Defence, read_options
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from cutlayer.types import Secret

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    sigma: _Positive | None = None
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

    def release(self, hidden: torch.Tensor, prefixes: Sequence[bytes]) -> torch.Tensor:
        """See `Defence.release`. Noise is added in float64 and rounded once."""
        rows = hidden.double()  # [T, D]
        if self.clip is not None:
            rows = rows * (self.clip / rows.norm(dim=-1, keepdim=True).clamp_min(self.clip))
        noise = self._noise.normal(prefixes, hidden.shape[-1]).to(hidden.device)  # [T, D]
        return (rows + self.sigma * noise).to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


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

    def build(self, options: dict[str, str], session: Secret) -> Defence:
        """See `Mechanism.build`."""
        chosen = read_options("gaussian", options, _Options)
        calibrated = (chosen.epsilon, chosen.delta)
        spec = "gaussian:" + ",".join(f"{key}={value}" for key, value in options.items())
        noise = KeyedNoise(session, "gaussian")
        if chosen.sigma is not None and calibrated == (None, None):
            return GaussianNoise(noise, chosen.sigma, chosen.clip, spec)
        if chosen.sigma is None and chosen.epsilon and chosen.delta and chosen.clip:
            return GaussianNoise(
                noise, analytic_sigma(chosen.epsilon, chosen.delta, 2 * chosen.clip), chosen.clip, spec
            )
        raise InputError(
            f"defence {spec!r}: give either sigma (with or without clip), or epsilon, delta and clip together"
        )


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """log Φ(x); the asymptotic series where Φ underflows."""
    if x > -37:
        return math.log(_phi(x))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) - 1 / (x * x)


MECHANISM: Final = _Gaussian()
