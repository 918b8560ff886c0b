"""d_χ noise (metric privacy): one uniform direction and one Gamma length per token.

Published budgets run from 1 to 5000, on embeddings of other lengths (second-hand; not comparable between models). The length
of the noise hardly varies, by 4 % at D = 576, so at equal length this is nearly Gaussian noise to an attacker.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.exponential import ExponentialChannel
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.defences.scale import median_norm
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.defences.channel import Channel
    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    eta: _Positive | None = None
    relative: _Positive | None = None


class MetricNoise:
    """d_χ noise of one session, p(z) ∝ exp(−η‖z‖).

    Args:
        direction: keyed source of directions.
        length: keyed source of lengths.
        eta: η, one over the unit of the hidden state.
        spec: how it was specified.
    """

    def __init__(self, direction: KeyedNoise, length: KeyedNoise, eta: float, spec: str) -> None:
        self._direction = direction
        self._length = length
        self._eta = eta
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`. Noise is added in float64 and rounded once."""
        width = hidden.shape[-1]
        direction = torch.nn.functional.normalize(self._direction.normal(positions.prefixes, width), dim=-1)  # [T, D]
        # Gamma(D, 1/η) for integer D is a sum of D exponential values
        length = -self._length.uniform(positions.prefixes, width).log().sum(-1, keepdim=True) / self._eta  # [T, 1]
        return (hidden.double() + (length * direction).to(hidden.device)).to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class _Dchi:
    card = Card(
        name="dchi",
        source="Metric (d_χ) privacy for text, Feyisetan et al. 2020 (arXiv 1910.08902); on embeddings: SnD (arXiv 2310.09130)",
        threat_model="Server sees the noisy hidden state of every position, may know the weights and η; not the session secret.",
        guarantee=(
            "η·d metric privacy per position: log-likelihoods of two states at distance d differ by at most η·d. Nothing bounds "
            "d but the model, so η is not an ε; a token changes all later positions too, and their η·d add up."
        ),
        parameters={
            "eta": "η, one over the unit of the hidden state; mean length of the noise is D/η",
            "relative": "mean length of the noise over the median length of a hidden state at this cut",
        },
        deviations=(
            "On hidden states instead of token embeddings at k > 0, and without the snap to the nearest token, which would lose "
            "utility and protect nothing more. SnD's published code draws a Gamma value per coordinate and does not normalise "
            "the direction, which makes its noise some √(D/3) times longer than its η says. Noise is a keyed function of the "
            "session secret and the tokens up to the position, so a resend repeats it."
        ),
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        sources = KeyedNoise(session, "dchi direction"), KeyedNoise(session, "dchi length")
        return MetricNoise(*sources, _eta(spec, head), str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`. The wire's rounding is far below any noise worth adding."""
        return ExponentialChannel(_eta(spec, head), order=2)


def _eta(spec: Spec, head: Head | None) -> float:
    chosen = spec.read(_Options)
    if chosen.eta is not None and chosen.relative is None:
        return chosen.eta
    if chosen.relative is not None and chosen.eta is None:
        length, width = median_norm(head, "dchi")
        return width / (chosen.relative * length)
    raise InputError(f"defence {str(spec)!r}: give one of eta or relative")


MECHANISM: Final = _Dchi()
