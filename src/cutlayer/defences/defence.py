"""The slot between head and codec, and how a defence is named on the command line.

none
gaussian:sigma=0.05
gaussian:epsilon=8,delta=1e-6,clip=40
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import msgspec

from cutlayer.registry import Registry, Spec

if TYPE_CHECKING:
    import torch

    from cutlayer.defences.channel import Channel
    from cutlayer.defences.positions import Positions
    from cutlayer.models.parts import Head
    from cutlayer.types import Secret


class Card(msgspec.Struct, frozen=True):
    """What a defence is and is not, in words a user can act on."""

    name: str
    source: str
    """Paper and equations."""
    threat_model: str
    guarantee: str
    """What is proved, about which neighbouring inputs; or that nothing is."""
    parameters: dict[str, str]
    """Name → meaning with unit."""
    deviations: str
    """Differences from the source."""


class Defence(Protocol):
    """A configured defence of one session."""

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """What leaves in place of hidden states [T, D].

        Args:
            hidden: consecutive positions, [T, D].
            positions: where they are. In one session the same tokens give the same output, so a resend reveals nothing
                new; any other prefix gives independent noise.
        """
        ...

    def describe(self) -> str:
        """The setting in effect, as a specification that would build it again."""
        ...


@runtime_checkable
class Mechanism(Protocol):
    """A kind of defence."""

    card: Card

    def build(self, spec: Spec, session: Secret, head: Head | None) -> Defence:
        """Configure it for one session.

        Args:
            spec: its options.
            session: secret of at least 32 bytes that keys the noise; never reuse one across sessions.
            head: the client's first layers, for mechanisms that look at the model; may be None for others.

        Raises:
            InputError: an option is unknown, missing or out of range, or a head is needed.
        """
        ...

    def channel(self, spec: Spec, head: Head | None, precision: float) -> Channel:
        """What an attacker who knows everything but `session` knows of it.

        Args:
            spec: its options.
            head: the attacker's copy of the client's first layers.
            precision: relative rounding of the wire, 0 for a lossless one.

        Raises:
            InputError: as `build`.
        """
        ...


MECHANISMS: Final[Registry[Mechanism]] = Registry(
    "defences",
    Mechanism,  # type: ignore[type-abstract]
    {
        name: f"cutlayer.defences.{name.replace('-', '_')}:MECHANISM"
        for name in (
            "none",
            "gaussian",
            "laplace",
            "dchi",
            "topk",
            "dropout",
            "quantise",
            "clip",
            "lowrank",
            "permute",
            "pripert",
        )
    },
)


def build_defence(spec: str, session: Secret, head: Head | None = None) -> Defence:
    """Read ``NAME[:KEY=VALUE,…]`` and build the defence.

    Raises:
        UnknownNameError: no such mechanism.
        InputError: malformed, or as `Mechanism.build`.
    """
    parsed = Spec.parse(spec)
    return MECHANISMS.get(parsed.name).build(parsed, session, head)


def build_channel(spec: str, head: Head | None = None, precision: float = 0.0) -> Channel:
    """Read ``NAME[:KEY=VALUE,…]`` and build the attacker's view of the defence.

    Raises:
        UnknownNameError: no such mechanism.
        InputError: malformed, or as `Mechanism.build`.
    """
    parsed = Spec.parse(spec)
    return MECHANISMS.get(parsed.name).channel(parsed, head, precision)
