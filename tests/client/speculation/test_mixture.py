"""Mixing sources: probabilities stay probabilities, and what proves right is believed."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.speculation.mixture import NOTHING, Mixture, Opinion

OPINION = st.dictionaries(st.integers(0, 9), st.floats(1e-4, 1.0), max_size=6).map(
    lambda named: Opinion({token: p / max(1.0, sum(named.values())) for token, p in named.items()})
)


@given(st.lists(st.tuples(OPINION, OPINION, OPINION, st.integers(0, 9)), max_size=40))
def test_chances_stay_chances(stream: list[tuple[Opinion, Opinion, Opinion, int]]) -> None:
    mixture = Mixture([0.9, 0.4, 0.1], [-3.0, 0.0, 0.5], 1.0)
    for *opinions, token in stream:
        chances = mixture.chances(opinions)
        assert set(chances) == set().union(*opinions)
        assert all(0 <= chance < 1 and math.isfinite(chance) for chance in chances.values())
        assert sum(chances.values()) <= 1 + 1e-9
        mixture.learn(opinions, token)


def test_chances_become_true() -> None:
    """A source that claims 0.9 and is right half of the time is believed half; one that claims 0.2 and is mostly right, more."""
    draw = random.Random(0)
    for claim, truth in ((0.9, 0.5), (0.2, 0.9)):
        mixture = Mixture([1.0], [0.0], 0.0)
        for _ in range(3000):
            mixture.learn([Opinion({1: claim})], 1 if draw.random() < truth else 2)
        assert abs(mixture.chances([Opinion({1: claim})])[1] - truth) < 0.1


def test_the_better_source_wins() -> None:
    draw = random.Random(1)
    mixture = Mixture([0.5, 0.5], [0.0, 0.0], 0.0)
    for _ in range(2000):
        right, wrong = draw.sample(range(9), 2)
        mixture.learn([Opinion({right: 0.6}), Opinion({wrong: 0.6})], right)
    chances = mixture.chances([Opinion({1: 0.6}), Opinion({2: 0.6})])
    assert chances[1] > 0.8
    assert chances[2] < 0.05


def test_what_a_sure_source_rules_out_stays_out() -> None:
    mixture = Mixture([0.9, 0.4], [0.0, 0.0], 0.0)
    alone = mixture.chances([NOTHING, Opinion({2: 0.5})])[2]
    assert mixture.chances([Opinion({1: 0.95}), Opinion({2: 0.5})])[2] < alone / 4
