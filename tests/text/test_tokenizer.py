"""Text in and out of the real tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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


def test_end_of_answer_is_known(tokenizer: Tokenizer, smollm2: Path) -> None:
    assert AutoTokenizer.from_pretrained(smollm2).eos_token_id in tokenizer.stop_ids


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no usable tokenizer"):
        Tokenizer(tmp_path)
