"""Constrained answers: even a model of random weights gives valid JSON."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Door

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["name", "old", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def byte_level(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under a tokenizer of the kind real models have, one token per printable ASCII character."""
    directory = tmp_path_factory.mktemp("byte_level") / "llama"
    shutil.copytree(tiny("llama"), directory)
    characters = [" ", *(chr(code) for code in range(33, 127))]
    names = ["Ġ" if character == " " else character for character in characters]  # as byte-level vocabularies write it
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *names))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def door(open_door: Callable[..., Door], byte_level: Path) -> Door:
    return open_door(directory=byte_level)


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_valid_under_the_schema(door: Door, schema: dict[str, Any], seed: int) -> None:
    answer = door.chat(response_format=schema, temperature=1, seed=seed, max_tokens=100, n=2)
    assert answer.status_code == 200, answer.text
    for choice in answer.json()["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_a_stream_is_constrained_too(door: Door, schema: dict[str, Any]) -> None:
    answer = door.chat(response_format=schema, temperature=1, seed=9, max_tokens=100, stream=True)
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_json_object_begins_as_one(door: Door) -> None:
    [choice] = door.chat(response_format={"type": "json_object"}, temperature=1, seed=4).json()["choices"]
    assert choice["message"]["content"].startswith("{")


def test_penalties_do_not_break_the_grammar(door: Door, schema: dict[str, Any]) -> None:
    quote = door.post("/v1/tokenize", {"prompt": '"'}).json()["tokens"][0]
    answer = door.chat(
        response_format=schema, frequency_penalty=2, logit_bias={str(quote): -100}, max_tokens=100, seed=1
    )
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "thing"}, {"type": "array", "contains": {"const": 1}}, {"$ref": "http://elsewhere.example/x"}, {"pattern": "("},
        {"type": "string", "pattern": "(?=a)b"}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"properties": 3},
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_kept_are_refused(door: Door, wrong: dict[str, Any]) -> None:
    answer = door.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert "elsewhere" not in answer.text
    assert ("contains" in answer.text) is ("contains" in wrong)


def test_a_model_whose_tokenizer_is_not_understood_says_so(open_door: Callable[..., Door]) -> None:
    answer = open_door().chat(response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
