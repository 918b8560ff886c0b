"""`/v1/completions`, `/v1/tokenize`, `/v1/models` in front of a tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Door

TOLERANCE = 1e-3


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door()


@pytest.fixture(scope="module")
def unsplit(tiny_with_text: Callable[[str], Path]) -> Callable[[list[int]], torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(tiny_with_text("llama"), dtype=torch.float32).eval()

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)  # [T, V]

    return logprobs


def test_echoed_logprobs_are_the_unsplit_models(door: Door, unsplit: Callable[[list[int]], torch.Tensor]) -> None:
    prompt = "The quick brown fox."
    door.complete(prompt)  # so that the session holds it already
    unnamed = {str(special): -100 for special in range(6)}  # tokens without text
    [choice] = door.complete(prompt, echo=True, logprobs=2, temperature=0, logit_bias=unnamed).json()["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(prompt)
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(len(choice["text"])))  # one token per character
    ids = door.post("/v1/tokenize", {"prompt": choice["text"]}).json()["tokens"]
    expected = unsplit(ids)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for at in range(1, len(ids)):
        assert logprobs["token_logprobs"][at] == pytest.approx(float(expected[at - 1, ids[at]]), abs=TOLERANCE)
        values = sorted(logprobs["top_logprobs"][at].values(), reverse=True)
        assert values[:2] == pytest.approx(expected[at - 1].topk(2).values.tolist(), abs=TOLERANCE)
        assert logprobs["tokens"][at] in logprobs["top_logprobs"][at]


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_ends_an_answer_is_listed_and_has_no_text(door: Door, stream: bool) -> None:
    """A harness that scores a prompt with one token to generate drops the last entry; without it, it would drop the prompt's."""
    answer = door.complete("hello", echo=True, logprobs=1, max_tokens=1, logit_bias={"2": 100}, stream=stream)
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        choices = answer.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "hello"
    assert choices[-1]["finish_reason"] == "stop"
    assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == [*"hello", "</s>"]
    assert [at for choice in choices for at in choice["logprobs"]["text_offset"]] == [0, 1, 2, 3, 4, 5]


def test_a_text_is_scored_without_generating(door: Door) -> None:
    [choice] = door.complete("hello", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert choice["text"] == "hello"
    assert len(choice["logprobs"]["tokens"]) == 5
    assert choice["finish_reason"] == "length"
    assert door.complete("hello", echo=True, max_tokens=0).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_prompt_gives_the_same(door: Door, stream: bool) -> None:
    ids = door.post("/v1/tokenize", {"prompt": "hello"}).json()["tokens"]

    def texts(prompt: Any) -> list[str]:
        answer = door.complete(prompt, temperature=0, stream=stream, echo=True, logprobs=1)
        if not stream:
            return [choice["text"] for choice in answer.json()["choices"]]
        parts: dict[int, str] = {}
        *chunks, done = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
        assert done == "[DONE]"
        for chunk in map(json.loads, chunks):
            for choice in chunk["choices"]:
                parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
        return [parts[index] for index in sorted(parts)]

    [expected] = texts("hello")
    assert expected.startswith("hello")
    assert texts(ids) == texts([ids]) == texts(["hello"]) == [expected]
    assert texts(["hello", "other"])[0] == expected
    assert texts([ids, ids]) == [expected, expected]


def test_choices_are_numbered_prompt_by_prompt_and_prompts_count_once(door: Door) -> None:
    body = door.complete(["abc", "defgh"], n=2, seed=5, max_tokens=3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 8
    assert body["usage"]["completion_tokens"] <= 12


def test_stop_strings_cut_text_tokens_and_offsets(door: Door) -> None:
    text = door.complete(temperature=0).json()["choices"][0]["text"]
    stop = text[4]
    at = text.index(stop)
    [choice] = door.complete(temperature=0, stop=stop, logprobs=1, echo=True).json()["choices"]
    assert choice["text"] == "hello" + text[:at]
    assert len(choice["logprobs"]["tokens"]) == 5 + at
    assert choice["logprobs"]["text_offset"] == list(range(5 + at))
    assert choice["finish_reason"] == "stop"


def test_default_length_is_openais(door: Door) -> None:
    body = door.complete(max_tokens=None, logit_bias={"2": -100}, temperature=0).json()
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"), ({"best_of": 2}, "best_of"), ({"best_of": 2, "n": 1}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"), ({"max_tokens": 0}, "max_tokens"), ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"), ({"prompt": [[1], 3]}, "prompt"), ({"prompt": [[]]}, None),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [101]}, "prompt"), ({"prompt": [1 << 70]}, None), ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"messages": []}, "messages"), ({"prompt": "x" * 9000}, "prompt"), ({"prompt": [5] * 9000}, "prompt"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(door: Door, fields: dict[str, Any], param: str | None) -> None:
    answer = door.complete(**{"prompt": "hello", **fields})
    assert answer.status_code == 400, answer.text
    if param is not None:
        assert answer.json()["error"]["param"] == param


def test_best_of_that_asks_for_nothing_is_taken(door: Door) -> None:
    assert door.complete(best_of=2, n=2).status_code == 200
    assert door.complete(best_of=1).status_code == 200
    assert door.complete(suffix="").status_code == 200


def test_tokens_there_and_back(door: Door) -> None:
    body = door.post("/v1/tokenize", {"model": "tiny", "prompt": "ab c", "return_token_strs": True}).json()
    assert body["count"] == 4
    assert body["token_strs"] == ["a", "b", " ", "c"]
    assert body["max_model_len"] == door.gateway.max_positions
    assert door.post("/v1/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": "ab c"}
    chat = door.post("/v1/tokenize", {"messages": [{"role": "user", "content": "ab"}]}).json()
    assert chat["count"] == 4  # <user> a b <assistant>
    assert door.post("/v1/tokenize", {}).status_code == 400
    assert door.post("/v1/tokenize", {"prompt": "a", "model": "other"}).status_code == 404
    assert door.post("/v1/detokenize", {"tokens": [101]}).status_code == 400
    assert door.post("/v1/tokenize", {"prompt": ""}).json()["tokens"] == []


def test_models(door: Door) -> None:
    [model] = door.http.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert door.http.get("/v1/models/tiny").json() == model
    missing = door.http.get("/v1/models/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
