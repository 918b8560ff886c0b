"""A lazy, typed registry: name → "module:object", resolved on first use.

Plug-ins of other distributions join through the entry-point group `cutlayer.<kind>`. A name registered twice is an
error that shows both targets, and an unknown name lists those there are.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import msgspec

from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping


T = TypeVar("T")


class Spec(NamedTuple):
    """``NAME[:KEY=VALUE,…]``, how a plug-in and its options are given on the command line."""

    name: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a specification.

        Raises:
            InputError: malformed.

        Examples:
            >>> Spec.parse("gaussian:sigma=0.05,clip=40")
            Spec(name='gaussian', options={'sigma': '0.05', 'clip': '40'})
        """
        name, _, tail = text.partition(":")
        options: dict[str, str] = {}
        for item in filter(None, tail.split(",")):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not key or key in options:
                raise InputError(f"{text!r}: {item!r} is not of the form KEY=VALUE, or is given twice")
            options[key] = value
        return cls(name.strip(), options)

    def __str__(self) -> str:
        return self.name + ":" * bool(self.options) + ",".join(f"{key}={value}" for key, value in self.options.items())

    def read(self, kind: type[T]) -> T:
        """The options as a struct of type `kind`, ranges checked.

        Raises:
            InputError: unknown, missing or out of range.
        """
        try:
            return msgspec.convert(self.options, kind, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"{self}: {error}") from None


class Registry(Generic[T]):
    """Names of one kind of plug-in.

    Args:
        kind: plural noun used in messages and as entry-point group suffix, e.g. ``"codecs"``.
        base: class every resolved object must be an instance of.
        builtin: name → ``"module:attribute"``.
    """

    def __init__(self, kind: str, base: type[T], builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._base = base
        self._targets = dict(builtin)
        self._resolved: dict[str, T] = {}
        self._entry_points_read = False

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._read_entry_points()
        return sorted(self._targets)

    def get(self, name: str) -> T:
        """Return the plug-in called `name`.

        Raises:
            UnknownNameError: no such name, or its target is not a `base`.
        """
        if name in self._resolved:
            return self._resolved[name]
        self._read_entry_points()
        target = self._targets.get(name)
        if target is None:
            raise UnknownNameError(f"unknown name {name!r} among {self.kind}; available: {', '.join(self.names())}")
        module, _, attribute = target.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, self._base):
            raise UnknownNameError(
                f"{target} registered as {name!r} is a {type(found).__name__}, not a {self._base.__name__}"
            )
        self._resolved[name] = found
        return found

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for point in entry_points(group=f"cutlayer.{self.kind}"):
            present = self._targets.setdefault(point.name, point.value)
            if present != point.value:
                raise UnknownNameError(
                    f"{point.name!r} is registered twice among {self.kind}: {present} and {point.value}; uninstall one"
                )
