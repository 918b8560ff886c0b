"""Which text is attacked and which the attacker owns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cutlayer.corpora.split import is_test, study_ids
from cutlayer.corpora.study import attacker_text, describe, study_prompts
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    Encode = Callable[[str], list[int]]


def test_prompts_fit_the_range_and_come_from_all_sources(words: Encode, small_encyclopedia: list[str]) -> None:
    prompts = study_prompts(25, 0, words)
    assert Counter(prompt.attributes["source"] for prompt in prompts) == {
        "question": 10,
        "encyclopedia": 10,
        "canary": 5,
    }
    assert all(16 <= len(words(prompt.text)) <= 64 for prompt in prompts)
    assert len({prompt.id for prompt in prompts}) == 25
    assert describe(prompts) == "10 question, 10 encyclopedia, 5 canary"


def test_leads_are_whole_words_of_listed_documents(words: Encode, small_encyclopedia: list[str]) -> None:
    leads = [p for p in study_prompts(100, 0, words, 20, 30) if p.attributes["source"] == "encyclopedia"]
    assert len(leads) == 20  # all there are, the rest is filled up
    assert {lead.id for lead in leads} == set(study_ids()[:20])
    for lead in leads:
        number = small_encyclopedia.index(lead.id.removeprefix("wiki/"))
        full = " ".join(f"It has w{number}-{j}x and w{number}-{j}y and nothing else." for j in range(10))
        assert full.startswith(lead.text + " ")
    assert len({len(words(lead.text)) for lead in leads}) > 3  # lengths are drawn


def test_choice_follows_the_seed(words: Encode, small_encyclopedia: list[str]) -> None:
    assert study_prompts(30, 1, words) == study_prompts(30, 1, words)
    assert study_prompts(30, 1, words) != study_prompts(30, 2, words)
    assert study_prompts(10, 1, words) == study_prompts(30, 1, words)[:10]


def test_prompts_without_encyclopedia(words: Encode, no_encyclopedia: None) -> None:
    prompts = study_prompts(9, 0, words)
    assert describe(prompts) == "6 question, 3 canary"


def test_ranges_that_hold_nothing(words: Encode, small_encyclopedia: list[str]) -> None:
    with pytest.raises(InputError, match="give 1 <= low <= high"):
        study_prompts(5, 0, words, 10, 9)
    with pytest.raises(InputError, match="widen the range"):
        study_prompts(5, 0, words, 1000, 2000)


def test_the_attacker_owns_no_document_that_is_attacked(words: Encode, small_encyclopedia: list[str]) -> None:
    windows, source = attacker_text(words, pairs=10_000, length=12)
    owned = {token for window in windows for token in window}
    for i, title in enumerate(small_encyclopedia):
        own_word = words(f"w{i}-0x")[1]
        assert (own_word in owned) == (not is_test(f"wiki/{title}"))
    assert "not attacked" in source
    assert "asked for" in source  # fewer than ten thousand pairs


def test_windows_start_sentences_are_whole_and_disjoint(words: Encode, small_encyclopedia: list[str]) -> None:
    windows, source = attacker_text(words, pairs=1200, length=12)
    assert len(windows) == 100
    assert source == "100 windows of 12 tokens from encyclopedia documents that are not attacked"
    start = words("It has")
    assert all(len(window) == 12 and window[:3] == start for window in windows)
    assert len({tuple(window) for window in windows}) == 100
    first_round = sum(not is_test(f"wiki/{title}") for title in small_encyclopedia)
    firsts = {words(f"w{i}-0x")[1] for i in range(len(small_encyclopedia))}
    assert all(window[3] in firsts for window in windows[:first_round])  # every document's first before any second
    assert not any(window[3] in firsts for window in windows[first_round:])
    assert attacker_text(words, 1200, 12, seed=1)[0] != windows


def test_random_ids_without_encyclopedia(words: Encode, no_encyclopedia: None) -> None:
    windows, source = attacker_text(words, pairs=100_000, length=64, vocabulary=10)
    assert len(windows) == 1563
    assert {len(window) for window in windows} == {64}
    counts = Counter(token for window in windows for token in window)
    assert set(counts) == set(range(10))
    assert max(counts.values()) / min(counts.values()) < 1.1
    assert "uniformly random ids" in source
    with pytest.raises(InputError, match="size of the vocabulary"):
        attacker_text(words, 100)


@pytest.mark.parametrize(("pairs", "length"), [(0, 64), (64, 0)])
def test_counts_that_make_no_sense(words: Encode, pairs: int, length: int) -> None:
    with pytest.raises(InputError, match="positive"):
        attacker_text(words, pairs, length)
