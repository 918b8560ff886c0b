"""A kind of attack: its card, its options, and what makes it ready.

ATTACK: Final = AttackKind(AttackCard(name="ridge", …), _Options, _prepare)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.registry import Spec

CardType = TypeVar("CardType", bound=msgspec.Struct)
Chosen = TypeVar("Chosen", bound=msgspec.Struct)
Known = ParamSpec("Known")
"""What an attacker knows beforehand: the arguments of `prepare`."""
Ready = TypeVar("Ready")


class NoOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Of an attack without any."""


class AttackKind(Generic[CardType, Chosen, Known, Ready]):
    """`cutlayer.attacks.attack.Kind` of attacks on hidden states, `cutlayer.attacks.keycut.attack.Kind` of those on a key cut.

    Args:
        card: what it is.
        options: the struct its specification is read into.
        prepare: `Attack.prepare`, with those options first.
        needs: what it needs with some options; None is what the card says.
    """

    def __init__(
        self,
        card: CardType,
        options: type[Chosen],
        prepare: Callable[Concatenate[Chosen, Known], Ready],
        needs: Callable[[Chosen], frozenset[Any]] | None = None,
    ) -> None:
        self.card = card
        self._options = options
        self._prepare = prepare
        self._needs = needs

    def build(self, spec: Spec) -> Configured[CardType, Chosen, Known, Ready]:
        """See `Kind.build`."""
        options = spec.read(self._options)
        card = self.card if self._needs is None else msgspec.structs.replace(self.card, needs=self._needs(options))
        return Configured(card, options, self._prepare)


class Configured(Generic[CardType, Chosen, Known, Ready]):
    """An `Attack`: a kind with options.

    Args:
        card: of its kind, with what it needs with these options.
        options: its own.
        prepare: of its kind.
    """

    def __init__(self, card: CardType, options: Chosen, prepare: Callable[Concatenate[Chosen, Known], Ready]) -> None:
        self.card = card
        self._options = options
        self._prepare = prepare

    def prepare(self, *args: Known.args, **kwargs: Known.kwargs) -> Ready:
        """See `Attack.prepare`."""
        return self._prepare(self._options, *args, **kwargs)
