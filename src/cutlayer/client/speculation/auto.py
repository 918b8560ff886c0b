"""Lookup and recycling in one tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.growth import grow
from cutlayer.client.speculation.lookup import Lookup
from cutlayer.client.speculation.recycling import Recycling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec


class Auto:
    wants_prompt = False
    wants_states = False

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._recycling = Recycling()

    def propose(self, context: tuple[int, ...]) -> list[tuple[int, float]]:
        found = dict(self._recycling.propose(context))
        for token, chance in self._lookup.propose(context):
            found[token] = max(chance, found.get(token, 0.0))
        return list(found.items())

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        self._lookup.draft(ids, 0)
        self._recycling.draft(ids, 0)
        return grow(ids, self.propose, most)

    def observe(self, seen: Verified) -> None:
        self._recycling.observe(seen)

    def close(self) -> None: ...


class _Auto:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        return Auto()


KIND: Final = _Auto()
