"""A kind of attack: its card, its options, and what makes it ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.keycut.attack import Attack, Card, Public, Reader
    from cutlayer.registry import Spec

Chosen = TypeVar("Chosen", bound=msgspec.Struct)


class NoOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Of an attack without any."""


class AttackKind(Generic[Chosen]):
    """See `cutlayer.attacks.keycut.attack.Kind`.

    Args:
        card: what it is.
        options: the struct its specification is read into.
        prepare: `Attack.prepare` with those options.
    """

    def __init__(self, card: Card, options: type[Chosen], prepare: Callable[[Public, Chosen], Reader]) -> None:
        self.card = card
        self._options = options
        self._prepare = prepare

    def build(self, spec: Spec) -> Attack:
        """See `Kind.build`."""
        return _Configured(self.card, spec.read(self._options), self._prepare)


class _Configured(Generic[Chosen]):
    def __init__(self, card: Card, options: Chosen, prepare: Callable[[Public, Chosen], Reader]) -> None:
        self.card = card
        self._options = options
        self._prepare = prepare

    def prepare(self, public: Public) -> Reader:
        """See `Attack.prepare`."""
        return self._prepare(public, self._options)
