"""Text in and out of the real tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cutlayer.errors import InputError, ModelNotFoundError
from cutlayer.text.tokenizer import Message, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

TEXTS = [
    "plain words, and  two spaces",
    "naïve café – “quotes” …",
    "日本語のテキスト and русский",
    "emoji 👩‍🚀🚀 and flags 🇫🇷",
    "code:\n\tif x:\n        return {'a': 1}\n",
    " leading and trailing ",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer(smollm2)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_the_same_text_as_decoding_at_once(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_an_unfinished_character_is_given_out_at_the_end_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🚀")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids[:-1]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_conversation_is_rendered_as_transformers_renders_it(tokenizer: Tokenizer, smollm2: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Hi!"), ("user", "What is 2+2?")]
    expected = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokenizer.render([Message(*turn) for turn in turns]) == expected


def test_empty_prompts_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="empty"):
        tokenizer.encode("")
    with pytest.raises(InputError, match="at least one message"):
        tokenizer.render([])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Who owes Ann twel", "Who owes Ann"), ("Who owes Ann ", "Who owes Ann"), ("Who owes\nAnn", "Who owes"),
        ("one  ", "one"), ("Who", ""), ("", ""), (" ", ""), ("naïve café 日本", "naïve café"),
    ],
)  # fmt: skip
def test_whole_words_are_certain(tokenizer: Tokenizer, written: str, words: str) -> None:
    before = [Message("user", "Hello"), Message("assistant", "Hi!")]
    asked = tokenizer.certain([*before, Message("user", written)])
    header = tokenizer.certain([*before, Message("user", "")])
    assert header == tokenizer.render([*before, Message("user", "x")])[: len(header)]
    assert asked[: len(header)] == header
    assert tokenizer.decode(asked[len(header) :]).strip() == words


@given(
    text=st.lists(st.sampled_from([*"aé日🙂0.,' \n\t", "  ", "the", "don't"]), max_size=20).map("".join),
    end=st.integers(0, 40),
)
def test_what_is_certain_stays_however_it_goes_on(tokenizer: Tokenizer, text: str, end: int) -> None:
    certain = tokenizer.certain([Message("user", text[:end])])
    assert tokenizer.render([Message("user", text)])[: len(certain)] == certain


def test_nothing_is_certain_of_no_conversation(tokenizer: Tokenizer) -> None:
    assert tokenizer.certain([]) == []


def test_end_of_answer_is_known(tokenizer: Tokenizer, smollm2: Path) -> None:
    assert AutoTokenizer.from_pretrained(smollm2).eos_token_id in tokenizer.stop_ids


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no usable tokenizer"):
        Tokenizer(tmp_path)
