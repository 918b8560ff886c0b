"""What an attack is given, what it returns, and how attacks are named.

    reader = build_attack("search:width=64").prepare(threat)     # once per setting: fit, train
    guess = reader.read(observation)                             # once per prompt

An attack gets an `Observation` and a `Threat` and nothing else: never the truth it is scored against.

Notation: N sessions in which one prompt was sent, T positions, D hidden size, V vocabulary, S sequences.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from cutlayer.errors import InputError
from cutlayer.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from cutlayer.attacks.prior import Prior
    from cutlayer.defences.channel import Channel
    from cutlayer.models.parts import Head

Knowledge = Literal["W0", "W1", "W2"]
"""What the server knows of the client's weights: W0 nothing, W1 the public base of a private fine-tune, W2 all."""

Capability = Literal["embedding", "head", "auxiliary", "prior"]


class Observation(NamedTuple):
    """What the server holds of one prompt."""

    released: torch.Tensor
    """[N, T, D] float32: the hidden states as received, in each of N sessions in which the prompt was sent."""


class Auxiliary(NamedTuple):
    """Text the attacker owns, sent by itself through the same cut and the same defence."""

    ids: torch.Tensor
    """[S, T] token ids."""
    released: torch.Tensor
    """[S, T, D] float32: the channel's estimate from as many sessions as the victim's prompts were seen in."""


class Threat(NamedTuple):
    """Who knows what. Fields an attacker does not have are None."""

    knowledge: Knowledge
    channel: Channel
    """The public law of the defence; its parameters are known, its keys are not."""
    embedding: torch.Tensor | None = None
    """The public token table [V, D]."""
    head: Head | None = None
    """The attacker's copy of the client's first layers: exact under W2, the base model's under W1."""
    auxiliary: Auxiliary | None = None
    prior: Prior | None = None
    """A language model the attacker owns."""
    simulate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """The defence under keys of the attacker's own: hidden states [S, T, D] and their ids [S, T] → the channel's estimates
    [S, T, D] from N sessions. None where what leaves is what went in."""
    release: Callable[[torch.Tensor, Sequence[int], int], torch.Tensor] | None = None
    """One session under a key of the attacker's own: hidden states [R, D] of the last R of some ids [T], these ids, and the
    number of the key → what would leave [R, D]. None where what leaves is what went in."""
    repeats: int = 1
    """N."""
    seed: int = 0
    """Of the attack's own randomness."""
    device: str = "cpu"

    def capabilities(self) -> set[Capability]:
        """What there is."""
        there: dict[Capability, object] = {
            "embedding": self.embedding,
            "head": self.head,
            "auxiliary": self.auxiliary,
            "prior": self.prior,
        }
        return {name for name, value in there.items() if value is not None}


class Guess(NamedTuple):
    """What the attack reads."""

    tokens: torch.Tensor
    """[T] token ids."""
    confidence: torch.Tensor
    """[T] in [0, 1], the attack's own opinion."""
    effort: Mapping[str, float] = MappingProxyType({})
    """What it took, e.g. ``candidates``: hidden states evaluated in all."""


class AttackCard(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack is, and what is to be expected of it."""

    name: str
    source: str
    """Paper, sections, equations."""
    threat_model: str
    needs: frozenset[Capability]
    """What must be in the threat."""
    in_order: bool = True
    """Whether it takes row t of what left for position t."""
    parameters: dict[str, str]
    """Option → meaning with unit."""
    deviations: str
    """Differences from the source."""
    expected: str
    """Published or predicted numbers, and where from."""


class Reader(Protocol):
    """An attack that is ready."""

    def read(self, observation: Observation) -> Guess:
        """Guess every token of one prompt; there is no "no answer"."""
        ...


@runtime_checkable
class Attack(Protocol):
    """A configured attack."""

    @property
    def card(self) -> AttackCard:
        """Of its kind."""
        ...

    def prepare(self, threat: Threat, progress: Callable[[float], None]) -> Reader:
        """Do what is done once per setting: fit, train, calibrate.

        Args:
            threat: holds all the card says is needed.
            progress: told the share done.
        """
        ...


@runtime_checkable
class Kind(Protocol):
    """A kind of attack, to be configured."""

    card: AttackCard

    def build(self, spec: Spec) -> Attack:
        """Configure it.

        Raises:
            InputError: an option is unknown or out of range.
        """
        ...


ATTACKS: Final[Registry[Kind]] = Registry(
    "attacks",
    Kind,  # type: ignore[type-abstract]
    {
        name: f"cutlayer.attacks.{name.replace('-', '_')}:ATTACK"
        for name in (
            "prior-only",
            "nearest",
            "ridge",
            "mlp",
            "cunningham",
            "gru",
            "actinv",
            "pia",
            "tbs",
            "revertlm",
            "search",
            "map-beam",
            "vma",
            "simulate-and-match",
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
    return ATTACKS.get(parsed.name).build(parsed)


T = TypeVar("T")


def given(value: T | None) -> T:
    """Something that the card says is there.

    Raises:
        InputError: it is not; `missing` would have said so first.
    """
    if value is None:
        raise InputError("this attack was given less than its card says it needs; ask `missing` first")
    return value


def missing(attack: Attack, threat: Threat) -> set[Capability]:
    """What the attack needs and the threat does not hold."""
    return set(attack.card.needs) - threat.capabilities()


def prepare(attack: Attack, threat: Threat, progress: Callable[[float], None] = lambda share: None) -> Reader:
    """`Attack.prepare`, after checking that the threat holds what is needed.

    Raises:
        InputError: it does not, or rows leave in a secret order, in which the attack cannot read them.
    """
    absent = missing(attack, threat)
    if absent:
        raise InputError(
            f"attack {attack.card.name} needs {', '.join(sorted(absent))}, which a {threat.knowledge} attacker without "
            "them does not have"
        )
    if attack.card.in_order and not threat.channel.ordered:
        raise InputError(
            f"attack {attack.card.name} takes rows in order, and this defence sends them in a secret one; use vma"
        )
    return attack.prepare(threat, progress)
