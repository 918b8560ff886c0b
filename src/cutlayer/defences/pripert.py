"""PriPert: perturbations of chosen direction and fixed length, after Fan, Liu, Wang & Chen.

    pripert:beta=0.2                                    # static: a fixed subspace, calibrated from the client's layers
    pripert:beta=0.2,directions=FILE.safetensors        # static: calibrated offline with the whole public model
    pripert:reading=gradient,beta=0.2

What leaves is h + β‖h‖·u. A reading chooses the unit vector u; every reading is our own, see the card.

Footgun: all but static and decoy differentiate through the client's layers at every position, which costs seconds per token
on a CPU.

Notation: T positions, D hidden size, r rank, J = ∂h_t / ∂e_t.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgspec
import torch
from torch.nn.functional import normalize

from cutlayer.defences.defence import Card, Defence
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.defences.pripert_channel import SphereChannel, SubspaceChannel, sparsified
from cutlayer.defences.pripert_decoy import Decoy
from cutlayer.defences.pripert_directions import head_directions, inside, read_directions
from cutlayer.defences.pripert_readings import Backprop, Gradient, Power, Reading, Static
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.defences.channel import Channel
    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.registry import Spec
    from cutlayer.types import Secret

_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class _Options(Protocol):
    """What is chosen with a reading."""

    beta: float
    keep: float | None

    def bind(self, head: Head | None) -> Reading:
        """The reading for one session."""
        ...

    def channel(self, head: Head | None, precision: float) -> Channel:
        """What an attacker knows."""
        ...


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What all readings share; where nothing more is public, an attacker knows the length."""

    beta: Annotated[float, msgspec.Meta(gt=0, lt=1e3)]
    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None

    def channel(self, head: Head | None, precision: float) -> Channel:
        return SphereChannel(self.beta, self.keep, precision)


class _Static(_Common):
    reading: Literal["static"] = "static"
    rank: _Count | None = None
    directions: str | None = None

    def bind(self, head: Head | None) -> Reading:
        return Static(self._subspace(head))

    def channel(self, head: Head | None, precision: float) -> Channel:
        directions = self._subspace(head)
        return SubspaceChannel(directions, self.beta, self.keep, precision, inside(head, directions, self.keep))

    def _subspace(self, head: Head | None) -> torch.Tensor:
        if self.directions is not None:
            width = None if head is None else head.embedding().shape[1]
            return read_directions(Path(self.directions), width, self.rank)
        return head_directions(_needed(head), _RANK if self.rank is None else self.rank)


class _Power(_Common):
    reading: Literal["power"]
    steps: _Count = 5
    solves: _Count = 10

    def bind(self, head: Head | None) -> Reading:
        return Power(_needed(head), self.steps, self.solves)


class _Gradient(_Common):
    reading: Literal["gradient"]
    steps: _Count = 10
    unroll: _Count = 5

    def bind(self, head: Head | None) -> Reading:
        return Gradient(_needed(head), self.beta, self.steps, self.unroll)


class _Backprop(_Common):
    reading: Literal["backprop"]
    steps: _Count = 10

    def bind(self, head: Head | None) -> Reading:
        return Backprop(_needed(head), self.steps)


class _Decoy(_Common):
    reading: Literal["decoy"]
    neighbours: _Count = 20

    def bind(self, head: Head | None) -> Reading:
        return Decoy(_needed(head), self.neighbours)


_RANK: Final = 32
_READINGS: Final[dict[str, type[_Options]]] = {
    "static": _Static,
    "power": _Power,
    "gradient": _Gradient,
    "backprop": _Backprop,
    "decoy": _Decoy,
}


class Calibrated:
    """Perturbations of one session.

    Args:
        reading: chooses directions.
        noise: keyed source.
        beta: length of the perturbation over that of the hidden state.
        keep: share of coordinates kept before, see `sparsified`.
        spec: how it was specified.
    """

    def __init__(self, reading: Reading, noise: KeyedNoise, beta: float, keep: float | None, spec: str) -> None:
        self._reading = reading
        self._noise = noise
        self._beta = beta
        self._keep = keep
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`. A direction depends on tokens and key only, so rounding of `hidden` cannot turn it."""
        rows = sparsified(hidden.double(), self._keep)  # [T, D]
        draws = self._noise.normal(positions.prefixes, hidden.shape[-1])  # [T, D]
        chosen = [self._reading(positions.tokens(i), draw) for i, draw in enumerate(draws)]
        units = normalize(torch.stack(chosen).to(rows), dim=-1)  # [T, D]
        perturbed: torch.Tensor = rows + self._beta * rows.norm(dim=-1, keepdim=True) * units
        return perturbed.to(hidden.dtype)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec


class _PriPert:
    card = Card(
        name="pripert",
        source=(
            "PriPert, Fan, Liu, Wang & Chen, CCS 2026 (arXiv 2605.23158), known from its abstract only: perturbation "
            "directions chosen to maximise an inverter's error during backpropagation. Formulas and algorithm are derived here."
        ),
        threat_model=(
            "Server sees the perturbed state of every position and may know weights, β, the reading and, for static, the "
            "subspace; not the session secret."
        ),
        guarantee=(
            "None is proved. Static protects nothing from an attacker who projects the known subspace out. The exact length "
            "β‖h‖ tells candidates apart by itself, and power, gradient and backprop nearly repeat one direction per prefix, "
            "up to what the key changes. Directions that defeat a converged inverter are those an early-stopped one, and "
            "candidate search, do not notice (derived)."
        ),
        parameters={
            "beta": "L2 norm of the perturbation over that of the hidden state",
            "reading": (
                "static: random in a fixed subspace; power: keyed start, power steps on (JJᵀ + λI)⁻¹; gradient: ascent on the "
                "error of an unrolled attack; backprop: top left singular vector of J; decoy: towards another token's state"
            ),
            "keep": "share of coordinates of largest magnitude kept before the perturbation, default all; it leaks through which",
            "rank": "static: dimensions of the subspace, default 32 or all of the file",
            "directions": "static: safetensors file with an orthonormal matrix 'directions' [D, r]",
            "steps": "power, backprop: power steps (5, 10); gradient: ascent steps (10)",
            "solves": "power: conjugate-gradient iterations per step (10), too few to converge on an ill-conditioned J",
            "unroll": "gradient: steps of the attack differentiated through (5)",
            "neighbours": "decoy: tokens of most similar embedding to draw the decoy from (20)",
        },
        deviations=(
            "All readings are derived; which one the authors mean is not known. J is the block of one position's own "
            "embedding, other positions held fixed. λ = (10⁻³ σ_max)². Without a file, static takes the identity in place of "
            "the server's sensitivity, because a client holds no middle layers. It inverts the mean response, which is not the "
            "mean of inverses: at a single token its directions may amplify less than random ones. Decoys come from the token "
            "table, not from a language model. Starting vectors and choices are keyed by the session secret and the token prefix."
        ),
    )

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """See `Mechanism.build`."""
        options = _chosen(spec)
        noise = KeyedNoise(session, "pripert")
        return Calibrated(options.bind(head), noise, options.beta, options.keep, str(spec))

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """See `Mechanism.channel`."""
        return _chosen(spec).channel(head, precision)


def _needed(head: Head | None) -> Head:
    if head is None:
        raise InputError(
            "defence pripert needs the client's layers: build it with a head (static also takes directions=FILE)"
        )
    return head


def _chosen(spec: Spec) -> _Options:
    """The options of the reading named."""
    reading = spec.options.get("reading", "static")
    if reading not in _READINGS:
        raise InputError(f"{spec}: unknown reading {reading!r}; available: {', '.join(_READINGS)}")
    return spec.read(_READINGS[reading])


MECHANISM: Final = _PriPert()
