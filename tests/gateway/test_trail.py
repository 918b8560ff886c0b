"""Tokens are shown with their text, none before it and none that a stop string took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.answer_text import StopStrings
from cutlayer.client.generation import Piece
from cutlayer.client.logprobs import Logprobs
from cutlayer.gateway.trail import Trail, for_chat, for_completion

if TYPE_CHECKING:
    from collections.abc import Sequence

END = 99


def pieces_of(words: Sequence[str], stop: Sequence[str]) -> tuple[list[Piece], bool]:
    """What a generation would yield, were each word a token."""
    held, pieces, at = StopStrings(stop), [], 0
    for i, word in enumerate(words):
        text = held.push(word)
        if i == len(words) - 1 and not held.found:
            text += held.finish()
        pieces.append(Piece(i, text, at, Logprobs(i, -1.0, [])))
        at += len(word)
        if held.found:
            break
    return pieces, held.found


@given(
    words=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=2),
)
def test_tokens_shown_cover_the_text_given_and_no_more(words: list[str], stop: list[str]) -> None:
    pieces, stopped = pieces_of(words, stop)
    trail, shown, given_out = Trail(frozenset({END})), [], ""
    for piece in pieces:
        given_out += piece.text
        shown += trail.push(piece)
        covered = "".join(words[held.token] for held in shown)
        assert covered.startswith(given_out)  # all of the text given out has its tokens
        if shown:
            assert shown[-1].start < len(given_out)  # and none is shown before any of its text
    shown += trail.finish(stopped)
    assert [piece.token for piece in shown] == list(range(len(shown)))
    whole = "".join(words[piece.token] for piece in shown)
    assert whole.startswith(given_out)
    if not stopped:
        assert whole == given_out == "".join(words)


def test_the_token_that_ends_an_answer_is_not_shown_and_other_special_ones_are() -> None:
    trail = Trail(frozenset({END}))
    first = Piece(1, "a", 0, Logprobs(1, -1.0, []))
    special = Piece(50, "", 1, Logprobs(50, -1.0, []))
    end = Piece(END, "", 1, Logprobs(END, -1.0, []))
    assert trail.push(first) == [first]
    assert trail.push(special) == trail.push(end) == []
    assert trail.finish(cut_off=False) == [special]


class Names:
    """Token i is called like this."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [["a", "é", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"][i] for i in ids]


def test_bytes_are_given_for_whole_characters_alone() -> None:
    [entry] = for_chat([Logprobs(1, -0.5, [(2, -0.1), (0, -2.0)])], Names())  # type: ignore[arg-type]
    assert (entry.token, entry.bytes) == ("é", [0xC3, 0xA9])
    assert [top.bytes for top in entry.top_logprobs] == [None, [0x61]]


def test_of_tokens_with_one_name_the_likelier_is_listed_and_the_token_itself_always() -> None:
    entries = [None, Logprobs(0, -3.0, [(2, -0.1), (3, -0.7)])]
    listed = for_completion([1, 0], entries, [0, 1], Names())  # type: ignore[arg-type]
    assert listed.top_logprobs == [None, {"a": -3.0, "\N{REPLACEMENT CHARACTER}": -0.1}]
    assert listed.token_logprobs == [None, pytest.approx(-3.0)]
