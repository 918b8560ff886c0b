"""Several sources in one tree: slow ones are asked where the others see no way far ahead, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.client.speculation.mixed import Mixed
from cutlayer.client.speculation.mixture import NOTHING, Opinion
from cutlayer.client.speculation.source import Weighed

if TYPE_CHECKING:
    from collections.abc import Sequence


class Counting:
    """Says that every token is followed by the next number, with one chance."""

    def __init__(self, chance: float, step: int = 1) -> None:
        self.chance = chance
        self.step = step
        self.followed: list[list[int]] = []
        self.learned = 0

    def follow(self, ids: Sequence[int]) -> None:
        self.followed.append(list(ids))

    def propose(self, context: tuple[int, ...]) -> Opinion:
        return Opinion({context[-1] + self.step: self.chance}) if self.followed else NOTHING

    def learn(self, seen: Any, contexts: Any) -> None:
        self.learned += 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("chance", "asked"), [(0.99, 0), (0.3, 1)])
def test_slow_sources_are_asked_where_the_others_are_not_sure(chance: float, asked: int) -> None:
    quick, slow = Counting(chance), Counting(0.5, step=50)
    mixed = Mixed([Weighed(quick, 1.0, 0.0)], -2.0, slow=[Weighed(slow, 1.0, 0.0)])
    draft = mixed.draft([3, 4], 20)
    assert len(quick.followed) == 1
    assert len(slow.followed) == asked
    assert (4 + 50 in draft.tokens) == bool(asked)
