"""Token recycling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.growth import HORIZON, grow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec

K = 8


class Recycling:
    wants_prompt = False
    wants_states = False

    def __init__(self, order: int = 3) -> None:
        self._order = order
        self._table: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}
        self._ids: list[int] = []

    def propose(self, context: tuple[int, ...]) -> list[tuple[int, float]]:
        found: dict[int, float] = {}
        left = 1.0
        for order in range(self._order, 0, -1):
            entry = self._table.get(context[-order:])
            if entry is None:
                continue
            weight = left * (1.0 if order == 1 else 0.7)
            for token, chance in zip(*entry, strict=True):
                found[token] = found.get(token, 0.0) + weight * chance
            left -= weight
        return list(found.items())

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        self._ids = list(ids)
        return grow(ids, self.propose, most)

    def observe(self, seen: Verified) -> None:
        best = seen.logits.softmax(-1).topk(K)
        before = tuple(self._ids[: seen.base][-HORIZON:])
        contexts: list[tuple[int, ...]] = []
        for row, (token, parent) in enumerate(zip(seen.tokens, seen.parents, strict=True)):
            context = (*(before if parent < 0 else contexts[parent]), token)[-HORIZON:]
            contexts.append(context)
            entry = best.indices[row].tolist(), best.values[row].tolist()
            for order in range(1, self._order + 1):
                if len(context) >= order:
                    self._table[context[-order:]] = entry

    def close(self) -> None: ...


class _Recycling:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        return Recycling()


KIND: Final = _Recycling()
