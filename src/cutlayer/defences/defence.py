"""The slot between head and codec, and how a defence is named on the command line.

none
gaussian:sigma=0.05
gaussian:epsilon=8,delta=1e-6,clip=40
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, runtime_checkable

import msgspec

from cutlayer.errors import InputError
from cutlayer.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from cutlayer.types import Secret


T = TypeVar("T")


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

    def release(self, hidden: torch.Tensor, prefixes: Sequence[bytes]) -> torch.Tensor:
        """What leaves in place of hidden states [T, D].

        Args:
            hidden: consecutive positions, [T, D].
            prefixes: for each of them, a digest of all tokens up to and including it. In one session the same prefix
                gives the same output, so a resend reveals nothing new; another prefix gives independent noise.
        """
        ...

    def describe(self) -> str:
        """The setting in effect, as a specification that would build it again."""
        ...


@runtime_checkable
class Mechanism(Protocol):
    """A kind of defence."""

    card: Card

    def build(self, options: dict[str, str], session: Secret) -> Defence:
        """Configure it for one session.

        Raises:
            InputError: an option is unknown, missing or out of range.
        """
        ...


MECHANISMS: Final[Registry[Mechanism]] = Registry(
    "defences",
    Mechanism,  # type: ignore[type-abstract]
    {"none": "cutlayer.defences.none:MECHANISM", "gaussian": "cutlayer.defences.gaussian:MECHANISM"},
)


def extend_prefixes(prefixes: list[bytes], base: int, ids: Sequence[int]) -> list[bytes]:
    """Replace the digests from position `base` on by those of `ids`, and return these: what `Defence.release` takes.

    Args:
        prefixes: digests of the tokens up to and including each position, at least `base` of them; changed in place.
        base: position of the first of `ids`.
        ids: tokens from there on.
    """
    del prefixes[base:]
    for token in ids:
        before = prefixes[-1] if prefixes else b""
        prefixes.append(blake2b(before + token.to_bytes(8, "little")).digest())
    return prefixes[base:]


def build_defence(spec: str, session: Secret) -> Defence:
    """Read ``NAME[:KEY=VALUE,…]`` and build the defence.

    Args:
        spec: the specification.
        session: secret of at least 32 bytes that keys the noise; never reuse one across sessions.

    Raises:
        UnknownNameError: no such mechanism.
        InputError: malformed, or an option is unknown or out of range.
    """
    name, _, tail = spec.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or key in options:
            raise InputError(f"defence {spec!r}: {item!r} is not of the form KEY=VALUE, or is given twice")
        options[key.strip()] = value.strip()
    return MECHANISMS.get(name.strip()).build(options, session)


def read_options(name: str, options: dict[str, str], kind: type[T]) -> T:
    """Options as a struct of type `kind`, ranges checked.

    Raises:
        InputError: unknown, missing or out of range.
    """
    try:
        return msgspec.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"defence {name}: {error}") from None
