"""Laplace noise on every coordinate of every released hidden state.

The grid usually shown is ε ∈ {50, 70, 100, 500} (VFLAIR, as reported second-hand); no recovery figure is claimed for this
project before it is measured. Independent noise is the easiest to average away: over N sessions the median of each coordinate
comes within about scale/√N of the truth.

Notation: N sessions, T positions, D hidden size, b scale.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.exponential import ExponentialChannel
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.defences.scale import clipped, median_norm
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.defences.channel import Channel
    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    scale: _Positive | None = None
    relative: _Positive | None = None
    clip: _Positive | None = None


class LaplaceNoise:
    """Laplace noise of one session.

    Args:
        noise: keyed source.
        scale: b of each coordinate; its standard deviation is √2·b.
        clip: L2 norm every row is scaled down to before the noise, or None.
        spec: how it was specified.
    """

    def __init__(self, noise: KeyedNoise, scale: float, clip: float | None, spec: str) -> None:
        self._noise = noise
        self._scale = scale
        self._clip = clip
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`. Noise by inversion, added in float64 and rounded once."""
        centred = self._noise.uniform(positions.prefixes, hidden.shape[-1]).to(hidden.device) - 0.5  # [T, D]
        noise = -self._scale * centred.sign() * torch.log1p(-2 * centred.abs())  # [T, D]
        return (clipped(hidden.double(), self._clip) + noise).to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class LaplaceChannel(ExponentialChannel):
    """y = clip(h) + z, p(z) ∝ exp(−‖z‖₁/b).

    Args:
        scale: b.
        clip: as `LaplaceNoise`.
    """

    def __init__(self, scale: float, clip: float | None) -> None:
        super().__init__(1 / scale, order=1, clip=clip)

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.estimate`: the median of each coordinate, its maximum-likelihood value; half the mean's variance."""
        ordered = released.sort(dim=0).values  # [N, T, D]
        middle = len(ordered) - 1
        return (ordered[middle // 2] + ordered[(middle + 1) // 2]) / 2


class _Laplace:
    card = Card(
        name="laplace",
        source="Laplace mechanism, Dwork, McSherry, Nissim & Smith 2006; on split activations e.g. VFLAIR",
        threat_model=(
            "Server sees the noisy hidden state of every position, may know the weights, b and the clip; not the session secret."
        ),
        guarantee=(
            "Log-likelihoods of two states differ by at most their L1 distance over b. With clip: ε-DP with ε = 2·√D·clip/b "
            "for replacing the clipped hidden state of ONE position (about 48·clip/b at D = 576); a token changes all later "
            "positions too, so a prompt is protected only by the composition over every position it changed. Without "
            "clip: no bound."
        ),
        parameters={
            "scale": "b of each coordinate, in units of the hidden state",
            "relative": "root-mean-square length of the noise, √(2D)·b, over the median length of a hidden state at this cut",
            "clip": "L2 norm of a row before the noise",
        },
        deviations=(
            "Noise is a keyed function of the session secret and the tokens up to the position, so a resend repeats it. "
            "float64 sampling, rounded once: no defence against attacks on the lowest bits of floating-point noise "
            "(Mironov 2012)."
        ),
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        scale, clip = _resolved(spec, head)
        return LaplaceNoise(KeyedNoise(session, "laplace"), scale, clip, str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`. The wire's rounding is far below any noise worth adding."""
        return LaplaceChannel(*_resolved(spec, head))


def _resolved(spec: Spec, head: Head | None) -> tuple[float, float | None]:
    """Scale and clip."""
    chosen = spec.read(_Options)
    if chosen.scale is not None and chosen.relative is None:
        return chosen.scale, chosen.clip
    if chosen.relative is not None and chosen.scale is None:
        length, width = median_norm(head, "laplace")
        return chosen.relative * length / math.sqrt(2 * width), chosen.clip
    raise InputError(f"defence {str(spec)!r}: give one of scale or relative")


MECHANISM: Final = _Laplace()
