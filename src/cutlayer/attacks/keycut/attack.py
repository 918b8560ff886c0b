"""What an attack on an obfuscated checkpoint is given, what it returns, and how such attacks are named.

    reader = build_attack("clx:layers=4").prepare(public)     # once per base: what the attacker has without the host
    claim = reader.read(held)                                 # once per export

An attack gets `Public` and `Held` and nothing else: never τ, which it is scored against.

Notation: V vocabulary, N asked ids, M known pairs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from cutlayer.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from cutlayer.attacks.keycut.weights import Weights

Need = Literal["base", "corpus", "log", "known"]


class Public(NamedTuple):
    """What the attacker has without being the host. What it does not have is None."""

    base: Weights | None = None
    """The model the export was made from."""
    corpus: Sequence[Sequence[int]] | None = None
    """Documents of its own, in plain token ids."""


class Held(NamedTuple):
    """What the host has. What it does not have is None."""

    export: Weights
    asked: torch.Tensor
    """[N] permuted ids that are to be named, all different."""
    log: Sequence[Sequence[int]] | None = None
    """Requests in permuted ids, one by one."""
    known: torch.Tensor | None = None
    """[M, 2]: plain id and permuted id of tokens the attacker knows, none of them asked."""


class Claim(NamedTuple):
    """The plain id of every asked id."""

    ids: torch.Tensor
    """[N] permuted ids; those of `Held.asked`, or the part of them that this attack can say something about at all."""
    plain: torch.Tensor
    """[N] plain ids; −1 where the attack names none, which is counted as a miss."""
    facts: Mapping[str, float] = MappingProxyType({})
    """What the attack can tell of its own success without knowing τ, see its card."""


class NoClaim(NamedTuple):
    """The attack does not apply here."""

    reason: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack is, and what is to be expected of it."""

    name: str
    label: str
    """Of its row in tables, e.g. ``A2``."""
    source: str
    needs: frozenset[Need]
    """What must be in `Public` and `Held`; without ``base`` the attack works for any host."""
    parameters: dict[str, str]
    """Option → meaning with unit."""
    facts: dict[str, str]
    """Name of a fact → meaning."""
    deviations: str
    expected: str


class Reader(Protocol):
    """An attack that is ready."""

    def read(self, held: Held) -> Claim | NoClaim:
        """Name the asked ids of one export."""
        ...


@runtime_checkable
class Attack(Protocol):
    """A configured attack."""

    @property
    def card(self) -> Card:
        """Of its kind."""
        ...

    def prepare(self, public: Public) -> Reader:
        """Do what does not depend on the export."""
        ...


@runtime_checkable
class Kind(Protocol):
    """A kind of attack, to be configured."""

    card: Card

    def build(self, spec: Spec) -> Attack:
        """Configure it.

        Raises:
            InputError: an option is unknown or out of range.
        """
        ...


KEYCUT_ATTACKS: Final[Registry[Kind]] = Registry(
    "keycut_attacks",
    Kind,  # type: ignore[type-abstract]
    {
        name: f"cutlayer.attacks.keycut.{name.replace('-', '_')}:ATTACK"
        for name in (
            "nearest-row",
            "vocabulary-matching",
            "gate-means",
            "clx",
            "known-plaintext",
            "fingerprint",
            "frequency",
            "decipherment",
            "states",
        )
    },
)


def build_attack(spec: str) -> Attack:
    """Read ``NAME[:KEY=VALUE,…]`` and configure the attack.

    Raises:
        UnknownNameError: no such attack.
        InputError: malformed, or an option is unknown or out of range.
    """
    parsed = Spec.parse(spec)
    return KEYCUT_ATTACKS.get(parsed.name).build(parsed)


def missing(attack: Attack, public: Public, held: Held) -> set[Need]:
    """What the attack needs and is not there."""
    there: dict[Need, object] = {
        "base": public.base,
        "corpus": public.corpus,
        "log": held.log,
        "known": held.known,
    }
    return {need for need in attack.card.needs if there[need] is None}
