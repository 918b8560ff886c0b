"""What holds for every speculator: answers stay the same, trees are trees, and repetition pays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutlayer.client.speculation.draft import Draft
from cutlayer.client.speculation.growth import grow
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.errors import InputError

SPECS = [
    "lookup",
    "recycling",
    "recycling:tree=static",
    "recycling:profile=mine",
    "cunningham",
    "cunningham:n=3,g=2",
    "lookahead",
    "lookahead:w=3,n=3,g=2,prompt=false",
    "auto",
]
PROMPT = [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("most", [0, 1, 7, 60])
def test_greedy_answers_are_the_same(spec: str, most: int, toy: Any, trusted: Any) -> None:
    for seed in range(3):
        model = toy(seed)
        speculator = build_speculator(spec, trusted)
        assert model.speculative(speculator, PROMPT, 60, most).tokens == model.sequential(PROMPT, 60)
        speculator.close()


@pytest.mark.parametrize("spec", SPECS)
def test_repetition_pays(spec: str, toy: Any, trusted: Any) -> None:
    tokens, trips = toy(0).speculative(build_speculator(spec, trusted), PROMPT, 200, most=80)
    assert len(tokens) / trips > 1.3


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("spec", [spec for spec in SPECS if "profile" not in spec])
def test_any_history_makes_a_tree(spec: str, data: st.DataObject, toy: Any, trusted: Any) -> None:
    """Prompts that change, shrink and come back; `verify` checks tokens, parents and siblings."""
    speculator = build_speculator(spec, trusted)
    ids: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        kept = data.draw(st.integers(0, len(ids)))
        ids = ids[:kept] + data.draw(st.lists(st.integers(0, 22), min_size=1, max_size=12))
        most = data.draw(st.integers(0, 20))
        draft = speculator.draft(ids, most)
        assert len(draft) <= most
        assert all(0 < chance <= 1 for chance in draft.chances)
        # The session may send fewer nodes than were drafted.
        seen, brought = toy(0).verify(ids, draft.first(data.draw(st.integers(0, len(draft)))))
        speculator.observe(seen)
        ids = [*ids, *brought]


@pytest.mark.parametrize(
    "spec", ["lookup:n=3", "cunningham:n=1", "lookahead:n=2", "recycling:tree=round", "auto:profile=../x"]
)
def test_options_that_cannot_be(spec: str, trusted: Any) -> None:
    with pytest.raises(InputError):
        build_speculator(spec, trusted)


def test_the_most_valuable_tree_is_grown() -> None:
    follows = {(): [(1, 0.6), (2, 0.3)], (1,): [(3, 0.5)], (2,): [(4, 0.9)], (1, 3): [(5, 0.1)]}
    draft = grow([0], lambda context: follows.get(context[1:], []), 4)
    assert draft == Draft((1, 2, 3, 4), (-1, -1, 0, 1), (0.6, 0.3, 0.5, 0.9))
    assert draft.ranked() == draft
