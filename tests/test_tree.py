"""The tree of a session against a list of parents, and what its rows may see against a walk up every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cutlayer.errors import ProtocolError
from cutlayer.models.visibility import positions, visible
from cutlayer.tree import FURTHEST, MOST_GUESSES, Tree, check_backs

NEAR = st.sampled_from([1, 1, 1, 2, 3, 5])
"""Distances back, most to the row before."""


def path_of(parents: list[int], slot: int) -> list[int]:
    """The slots up to `slot`, first to last."""
    path = []
    while slot >= 0:
        path.append(slot)
        slot = parents[slot]
    return path[::-1]


def chained(parents: list[int]) -> int:
    """How many of the first slots follow one another."""
    return next((slot for slot, parent in enumerate(parents) if parent != slot - 1), len(parents))


class Trees(RuleBasedStateMachine):
    """A tree that grows, rolls back and keeps paths, and is asked for what it must refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.parents: list[int] = []

    @rule(backs=st.lists(NEAR, max_size=12))
    def extend(self, backs: list[int]) -> None:
        self._extend([min(back, len(self.parents) + i + 1) for i, back in enumerate(backs)])

    @rule(count=st.integers(0, 40))
    def extend_a_chain(self, count: int) -> None:
        guesses = len(self.parents) - chained(self.parents)
        if not guesses or guesses + count <= MOST_GUESSES:
            self.tree.extend(count)
            self.parents += range(len(self.parents) - 1, len(self.parents) + count - 1)

    @rule(count=st.integers(100, 300), back=st.integers(1, FURTHEST))
    def extend_far(self, count: int, back: int) -> None:
        self._extend([1] * (count - 1) + [min(back, len(self.parents) + count)])

    @rule(count=st.integers(0, 5), backs=st.lists(st.integers(-1, 300), min_size=1, max_size=5))
    def extend_any_way(self, count: int, backs: list[int]) -> None:
        held = len(self.parents)
        if len(backs) == count and all(1 <= back <= min(FURTHEST, held + i + 1) for i, back in enumerate(backs)):
            self._extend(backs)
        else:
            with pytest.raises(ProtocolError, match=r"parents for|back; 1 to 255"):
                self.tree.extend(count, backs)

    def _extend(self, backs: list[int]) -> None:
        after = [*self.parents, *(len(self.parents) + i - back for i, back in enumerate(backs))]
        if len(after) - chained(after) > MOST_GUESSES:
            with pytest.raises(ProtocolError, match="more than 512 guesses"):
                self.tree.extend(len(backs), backs)
        else:
            self.tree.extend(len(backs), bytes(backs))
            self.parents = after

    @rule(share=st.floats(0, 1))
    def roll_back(self, share: float) -> None:
        slot = round(share * len(self.parents))
        self.tree.rollback(slot)
        del self.parents[slot:]

    @rule(beyond=st.sampled_from([-1, 1, 100]))
    def roll_back_beyond(self, beyond: int) -> None:
        with pytest.raises(ProtocolError, match="cannot roll back"):
            self.tree.rollback(-1 if beyond < 0 else len(self.parents) + beyond)

    @rule(data=st.data())
    def keep_a_path(self, data: st.DataObject) -> None:
        """From any slot of its trunk on."""
        if not self.parents:
            return
        path = path_of(self.parents, data.draw(st.integers(0, len(self.parents) - 1)))
        straight = next((i for i, slot in enumerate(path) if slot != i), len(path))
        anchor = data.draw(st.integers(max(0, straight - 3), straight))
        distances = [slot - anchor for slot in path[anchor:]]
        assert self.tree.trunk_after(anchor, distances) == (len(path) if distances else anchor)
        self.tree.keep(anchor, distances)
        self.parents = list(range(-1, len(path) - 1))

    @rule(
        share=st.floats(0, 1),
        path=st.sampled_from([[0], [0, 1], [1], [1, 2]]) | st.lists(st.integers(0, 12), min_size=1, max_size=4),
    )
    def keep_any_way(self, share: float, path: list[int]) -> None:
        anchor = round(share * len(self.parents))
        slots = [anchor + distance for distance in path]
        follow = all(
            slot < len(self.parents) and self.parents[slot] == before
            for before, slot in zip([anchor - 1, *slots], slots, strict=False)
        )
        if follow and anchor <= chained(self.parents):
            self.tree.keep(anchor, path)
            self.parents = list(range(-1, anchor + len(path) - 1))
        else:
            with pytest.raises(ProtocolError, match=r"does not follow slot|cannot keep a path from"):
                self.tree.keep(anchor, path)

    @invariant()
    def it_holds_the_same(self) -> None:
        held = len(self.parents)
        assert len(self.tree) == held
        assert self.tree.trunk == chained(self.parents)
        assert [self.tree.parent(slot) for slot in range(held)] == self.parents
        backs = self.tree.backs(0, held)
        assert list(backs or [1] * held) == [slot - parent for slot, parent in enumerate(self.parents)]

    @invariant()
    def paths_are_right(self) -> None:
        for slot in {0, len(self.parents) // 2, len(self.parents) - 1} if self.parents else ():
            seen, branch = self.tree.path(slot)
            assert [*range(seen), *branch] == path_of(self.parents, slot)


Trees.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestTrees = Trees.TestCase


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, list[int]]:
    """A small tree and its parents."""
    trunk = draw(st.integers(0, 12))
    backs = [
        min(back, slot + 1)
        for slot, back in enumerate([1] * trunk + draw(st.lists(NEAR | st.integers(1, 20), max_size=25)))
    ]
    tree = Tree()
    tree.extend(len(backs), backs)
    return tree, [slot - back for slot, back in enumerate(backs)]


@given(made=trees(), data=st.data())
def test_what_a_row_may_see_is_its_path_and_of_a_window_the_last_of_it(
    made: tuple[Tree, list[int]], data: st.DataObject
) -> None:
    tree, parents = made
    start = data.draw(st.integers(0, len(parents)))
    window = data.draw(st.none() | st.integers(1, 15))
    paths = [path_of(parents, slot) for slot in range(start, len(parents))]
    assert positions(tree, start) == [len(path) - 1 for path in paths]
    expected = torch.zeros(len(paths), len(parents), dtype=torch.bool)
    for row, path in zip(expected, paths, strict=True):
        row[path[-window:] if window else path] = True
    assert torch.equal(visible(tree, start, window, torch.device("cpu")), expected)


@given(made=trees(), data=st.data())
def test_rows_arrive_in_any_chunks(made: tuple[Tree, list[int]], data: st.DataObject) -> None:
    """What `backs` gives for a part, a tree that holds the slots before it takes."""
    tree, parents = made
    again = Tree()
    while len(again) < len(tree):
        stop = data.draw(st.integers(len(again) + 1, len(tree)))
        again.extend(stop - len(again), tree.backs(len(again), stop))
    assert [again.parent(slot) for slot in range(len(again))] == parents
    assert again.trunk == tree.trunk


def test_a_long_chain_is_no_guess() -> None:
    tree = Tree()
    tree.extend(5000)
    tree.extend(1000, [1] * 1000)
    assert tree.trunk == 6000
    assert tree.backs(0, 6000) == b""


@pytest.mark.parametrize(
    ("base", "trunk", "backs", "fits"),
    [
        (10, 10, [2] + [1] * 511, True),
        (10, 10, [2] + [1] * 512, False),
        (10, 10, [1] * 100 + [2] * 512, True),
        (10, 10, [1] * 100 + [2] * 513, False),
        (500, 10, [1] * 22, True),
        (500, 10, [1] * 23, False),
    ],
)
def test_only_so_many_guesses(base: int, trunk: int, backs: list[int], fits: bool) -> None:
    if fits:
        check_backs(len(backs), backs, base, trunk)
    else:
        with pytest.raises(ProtocolError, match="more than 512 guesses; keep a path"):
            check_backs(len(backs), backs, base, trunk)


def test_a_chain_after_guesses_is_guesses() -> None:
    with pytest.raises(ProtocolError, match="more than 512 guesses"):
        check_backs(23, (), 500, 10)
    check_backs(5000, (), 500, 500)
