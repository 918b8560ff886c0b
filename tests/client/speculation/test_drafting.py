"""How many guesses are made and sent, by what round trips took."""

from __future__ import annotations

import itertools
from statistics import median
from typing import TYPE_CHECKING

import pytest

from cutlayer.client.decoder import StepTiming
from cutlayer.client.speculation.draft import Draft
from cutlayer.client.speculation.drafting import MOST_NODES, Drafting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Verified

COMPUTING = 0.004


class Chain:
    """Guesses as many tokens as it may, each right with the same chance."""

    wants_prompt = False

    def __init__(self, chance: float, adaptive: bool = True) -> None:
        self._chance = chance
        self.adaptive = adaptive
        self.made = 0

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        self.made = most
        return Draft(tuple(range(most)), tuple(range(-1, most - 1)), (self._chance,) * most)

    def observe(self, seen: Verified) -> None: ...

    def close(self) -> None: ...


def settle(drafting: Drafting, wait: float, row: float, steps: int = 30) -> tuple[int, int]:
    """Guesses (sent, waited for), medians over the last of some steps that took `wait` + `row` × rows seconds, prefill first."""
    found = []
    drafting.took(StepTiming(wait + COMPUTING + row * 100, COMPUTING / 2 + row * 100, COMPUTING / 2, 100, 100))
    for _ in range(steps):
        draft, now = drafting.draft([1, 2, 3], 500, 500)
        rows = 1 + now
        computing = COMPUTING / 2 + row * rows
        drafting.took(StepTiming(wait + COMPUTING / 2 + computing, computing, COMPUTING / 2, rows, 1 + len(draft)))
        found.append((len(draft), now))
    sent, waited = zip(*found[-15:], strict=True)
    return int(median(sent)), int(median(waited))


def test_dearer_rows_mean_fewer_guesses() -> None:
    waited = [settle(Drafting(Chain(0.8), 100), 0.08, row)[1] for row in (0.0001, 0.005, 0.05, 1.0)]
    assert all(more >= fewer for more, fewer in itertools.pairwise(waited))
    assert waited[0] >= 10
    assert waited[-1] == 0


def test_surer_guesses_go_further() -> None:
    unsure, sure = (settle(Drafting(Chain(chance), 100), 0.08, 0.003)[1] for chance in (0.2, 0.95))
    assert unsure < sure


@pytest.mark.parametrize("row", [0.5, 0.00001])
def test_what_is_not_sent_is_not_guessed(row: float) -> None:
    chain = Chain(0.9)
    sent, _ = settle(Drafting(chain, 100), 0.08, row)
    assert sent <= chain.made <= sent + 8


def test_more_are_guessed_when_rows_become_cheap() -> None:
    drafting = Drafting(Chain(0.99), 100)
    before = settle(drafting, 0.08, 0.1)[1]
    assert settle(drafting, 0.08, 0.00001, steps=60)[1] > max(20, 3 * before)


def test_published_systems_send_what_they_guess() -> None:
    assert settle(Drafting(Chain(0.1, adaptive=False), 100), 0.0, 1.0) == (MOST_NODES, MOST_NODES)


def test_nothing_is_guessed_where_no_time_is_spent_on_the_way() -> None:
    drafting = Drafting(Chain(0.9), 100, least_wait=0.01)
    drafting.took(StepTiming(0.1, 0.05, 0.05, 100, 100))
    assert drafting.draft([1], 500, 500) == (Draft(), 0)
