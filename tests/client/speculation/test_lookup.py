"""Earlier text: the longest match, the newest of equals, whatever is rolled back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.speculation import suffixes
from cutlayer.client.speculation.lookup import Lookup
from cutlayer.client.speculation.suffixes import KEYS, LONGEST, Match, Suffixes

if TYPE_CHECKING:
    import pytest


def held(*texts: list[int]) -> Suffixes:
    index = Suffixes()
    for text in texts:
        index.follow(text)
    return index


def test_the_longest_match_comes_first_and_the_newest_of_equals() -> None:
    index = held([1, 2, 3, 7, 9, 2, 3, 8, 9, 9, 2, 3, 6, 5, 1, 2, 3])
    assert index.matches((5, 1, 2, 3)) == [Match(3, 7), Match(2, 6), Match(2, 8)]


def test_a_guessed_token_counts_as_context() -> None:
    assert held([1, 2, 3, 4, 5, 6]).matches((9, 2, 3, 4)) == [Match(3, 5)]


def test_one_token_is_no_match() -> None:
    assert held([1, 2, 3, 1]).matches((1,)) == []


def test_what_was_rolled_back_is_still_earlier_text() -> None:
    index = held([1, 2, 3, 4, 5, 6], [1, 2, 9])
    assert Match(2, 6) in index.matches((4, 5))
    assert index.matches((1, 2)) == [Match(2, 9), Match(2, 3)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffixes, "_CAPACITY", 100)
    index = Suffixes()
    for start in range(0, 5000, 10):
        text = list(range(start, start + 10))
        index.follow(text)
        assert index.matches((text[-3], text[-2])) == [Match(2, text[-1])]
    assert len(index._places) <= len(KEYS) * 120


@given(st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=5))
def test_matches_are_true(histories: list[list[int]]) -> None:
    """Against a search through the current text; what other texts add is not shorter than the key."""
    index = held(*histories)
    text = histories[-1]
    matches = index.matches(tuple(text[-LONGEST:]))
    assert [match.length for match in matches] == sorted((match.length for match in matches), reverse=True)
    assert len({match.token for match in matches}) == len(matches)
    assert all(min(KEYS) <= match.length <= LONGEST for match in matches)
    longest = max(
        (n for n in range(min(KEYS), len(text)) for at in range(n, len(text)) if text[at - n : at] == text[-n:]),
        default=0,
    )
    # The index keeps the newest few occurrences of a key alone, so a longer old match may be missed, but never all of them.
    assert bool(matches) >= bool(longest)


def test_a_longer_match_is_believed_more() -> None:
    lookup = Lookup()
    lookup.follow([1, 2, 3, 4, 5, 6, 7, 8, 9])
    chances = [lookup.propose(tuple(range(9 - length, 9)))[9] for length in range(2, 9)]
    assert chances == sorted(chances)
    assert sum(lookup.propose((7, 8)).values()) <= 1
