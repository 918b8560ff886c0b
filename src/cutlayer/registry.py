"""A lazy, typed registry: name → "module:object", resolved on first use.

Plug-ins of other distributions join through the entry-point group `cutlayer.<kind>`. A name registered twice is an
error that shows both targets, and an unknown name lists those there are.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Generic, TypeVar

from cutlayer.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping


T = TypeVar("T")


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
