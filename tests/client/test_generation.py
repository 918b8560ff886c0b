"""Answers as a user sees them: stop strings, lengths, streams, cancellation. The model is tiny and random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.answer_text import StopStrings

if TYPE_CHECKING:
    from collections.abc import Sequence


def given_out(pieces: Sequence[str], stop: Sequence[str]) -> tuple[str, bool]:
    filtered = StopStrings(stop)
    text = ""
    for piece in pieces:
        text += filtered.push(piece)
        if filtered.found:
            return text, True
    return text + filtered.finish(), False


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut_into_pieces(
    pieces: list[str], stop: list[str]
) -> None:
    """An independent reading: grow the text piece by piece; stop at the first piece that completes a stop string."""
    text, expected, found = "", None, False
    for piece in pieces:
        text += piece
        at = [text.find(word) for word in stop if word in text]
        if at:
            expected, found = text[: min(at)], True
            break
    assert given_out(pieces, stop) == (text if expected is None else expected, found)


def test_nothing_of_a_stop_string_is_given_out_early() -> None:
    filtered = StopStrings(["END"])
    assert [filtered.push(piece) for piece in ("a", "E", "N", "X", "EN", "D")] == ["a", "", "", "ENX", "", ""]
    assert filtered.found


@pytest.mark.parametrize("stop", [[], ["z"]])
def test_text_without_a_stop_string_is_complete(stop: list[str]) -> None:
    assert given_out(["hello ", "world"], stop) == ("hello world", False)
