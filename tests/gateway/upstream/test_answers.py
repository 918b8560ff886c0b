"""Answers through a gateway in front of an obfuscated model are the plain model's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tests.gateway.upstream.fake_engine import NAMES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cutlayer.client.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Upstream

TOLERANCE = 1e-3
PROMPT = "hello"


def prompt_ids(upstream: Upstream, text: str = PROMPT) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return list(upstream.door.post("/v1/tokenize", {"messages": messages}).json()["tokens"])


def streamed(answer: Any) -> tuple[str, list[dict[str, Any]]]:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]), events


def test_chat_whole_and_streamed(upstream: Upstream) -> None:
    ids = prompt_ids(upstream)
    expected = upstream.plain(ids, 12)
    answer = upstream.door.chat(PROMPT, temperature=0, max_tokens=12)
    assert answer.status_code == 200, answer.text
    text = upstream.door.gateway.tokenizer.decode(expected)
    assert answer.json()["choices"][0]["message"]["content"] == text
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), len(expected))
    stream = upstream.door.chat(PROMPT, temperature=0, max_tokens=12, stream=True)
    assert streamed(stream)[0] == text
    assert answer.headers["x-cutlayer-defence"] == "permuted token ids"
    assert answer.headers["x-cutlayer-ledger"] == f"positions={len(ids) + len(expected)}; defence=permuted token ids"
    assert "public base model" in answer.headers["x-cutlayer-readable"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_the_plain_models(upstream: Upstream, stream: bool) -> None:
    ids = prompt_ids(upstream)
    said = upstream.plain(ids, 6)
    answer = upstream.door.chat(PROMPT, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3, stream=stream)
    if stream:
        events = streamed(answer)[1]
        content = [
            entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
    else:
        content = answer.json()["choices"][0]["logprobs"]["content"]
    with torch.inference_mode():
        rows = AutoModelForCausalLM.from_pretrained(upstream.model.base)(torch.tensor([ids + said])).logits[0]
    rows = rows.log_softmax(-1)[len(ids) - 1 :]
    names = upstream.door.gateway.tokenizer.pieces
    shown = [token for token in said if token not in upstream.door.gateway.tokenizer.stop_ids]
    assert [entry["token"] for entry in content] == names(shown)
    for entry, row, token in zip(content, rows, shown, strict=False):
        assert abs(entry["logprob"] - float(row[token])) < TOLERANCE
        top = row.topk(3)
        assert [other["token"] for other in entry["top_logprobs"]] == names(top.indices.tolist())
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(
            top.values.tolist(), abs=TOLERANCE
        )


def test_biases_are_of_the_right_tokens(upstream: Upstream) -> None:
    ids = prompt_ids(upstream)
    unbiased = upstream.plain(ids, 4)
    bias = {unbiased[0]: -100.0, 40: 3.0}
    answer = upstream.door.chat(PROMPT, temperature=0, max_tokens=4, logit_bias={str(k): v for k, v in bias.items()})
    expected = upstream.plain(ids, 4, bias)
    assert expected != unbiased
    assert answer.json()["choices"][0]["message"]["content"] == upstream.door.gateway.tokenizer.decode(expected)


def test_an_answer_ends_with_the_models_own_end(upstream: Upstream) -> None:
    """Which engines are told where they can be, and which the gateway watches for in any case."""
    end = next(iter(upstream.door.gateway.tokenizer.stop_ids))
    answer = upstream.door.chat(PROMPT, temperature=0, max_tokens=9, logit_bias={str(end): 100})
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert answer.json()["usage"]["completion_tokens"] == 1
    upstream.engine.says = upstream.model.key.to_server([40, 41, end, 42, 43])
    more = upstream.door.chat(PROMPT, temperature=0, max_tokens=5).json()
    assert more["choices"][0]["finish_reason"] == "stop"
    assert more["usage"]["completion_tokens"] == 3


def test_stop_strings_are_matched_here_and_the_engine_is_left(upstream: Upstream) -> None:
    upstream.engine.says = upstream.model.key.to_server(
        upstream.door.gateway.tokenizer.encode("abcdefgh", special=False) * 20
    )
    answer = upstream.door.chat(PROMPT, temperature=0, max_tokens=150, stop=["def"])
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "stop")
    assert answer.json()["usage"]["completion_tokens"] == 6
    assert upstream.engine.left.wait(30)
    assert b"def" not in upstream.engine.bodies[-1]


def test_choices_and_prompts_are_requests_of_their_own_with_seeds_of_their_own(upstream: Upstream) -> None:
    answer = upstream.door.complete(["hello", "good day"], n=2, seed=7, max_tokens=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    bodies = [json.loads(body) for body in upstream.engine.bodies]
    seeds = [body.get("seed", body.get("sampling_params", {}).get("sampling_seed")) for body in bodies]
    assert seeds == [7, 8, 7, 8]


def test_sampling_is_the_engines(upstream: Upstream) -> None:
    asked = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.125, "presence_penalty": 0.25, "frequency_penalty": 0.75,
        "repetition_penalty": 1.25,
    }  # fmt: skip
    assert upstream.door.chat(PROMPT, max_tokens=2, **asked).status_code == 200
    body = json.loads(upstream.engine.bodies[-1])
    sent = body.get("sampling_params", body)
    names = {"repetition_penalty": "repeat_penalty"} if upstream.engine.speech.path == "/completion" else {}
    assert {name: sent[names.get(name, name)] for name in asked} == asked


def test_defaults_of_the_engine_never_apply(upstream: Upstream) -> None:
    assert upstream.door.chat(PROMPT, max_tokens=2).status_code == 200
    body = json.loads(upstream.engine.bodies[-1])
    sent = body.get("sampling_params", body)
    assert (sent["temperature"], sent["top_p"], sent["min_p"], sent["presence_penalty"]) == (1, 1, 0, 0)
    assert sent["top_k"] in (0, -1)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_prompts_are_scored(open_upstream: Callable[..., Upstream], kind: str) -> None:
    upstream = open_upstream(kind)
    ids = upstream.door.gateway.tokenizer.encode("good day", special=False)
    answer = upstream.door.complete(ids, echo=True, logprobs=2, max_tokens=0)
    logprobs = answer.json()["choices"][0]["logprobs"]
    with torch.inference_mode():
        rows = AutoModelForCausalLM.from_pretrained(upstream.model.base)(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=TOLERANCE)
    assert all(len(top) in (2, 3) for top in logprobs["top_logprobs"][1:])
    continued = upstream.door.complete(ids, echo=True, logprobs=2, max_tokens=3, temperature=0).json()["choices"][0]
    assert len(continued["logprobs"]["tokens"]) == len(ids) + len(upstream.plain(ids, 3))


def test_what_no_engine_can_be_asked_is_refused(upstream: Upstream) -> None:
    schema = upstream.door.chat(PROMPT, response_format={"type": "json_object"})
    assert schema.status_code == 400
    assert schema.json()["error"]["param"] == "response_format"
    assert not upstream.engine.bodies


def test_prompts_that_cannot_be_scored_are_refused(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("llamacpp")
    refused = upstream.door.complete("hello", echo=True, logprobs=1)
    assert refused.status_code == 400
    assert "llamacpp" in refused.json()["error"]["message"]
    assert not upstream.engine.bodies


def test_an_answer_fills_what_the_engine_has_and_no_more(upstream: Upstream) -> None:
    end = next(iter(upstream.door.gateway.tokenizer.stop_ids))
    prompt = [40] * 190
    answer = upstream.door.complete(prompt, max_tokens=100, temperature=0, logit_bias={str(end): -100}).json()
    assert answer["usage"]["completion_tokens"] == 10  # of 200 positions
    assert answer["choices"][0]["finish_reason"] == "length"
    assert upstream.door.complete([40] * 200).json()["error"]["code"] == "context_length_exceeded"


def test_an_engines_own_lower_limit_ends_an_answer_without_losing_text(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("vllm")
    said = upstream.model.key.to_server(upstream.door.gateway.tokenizer.encode("abc", special=False))
    events = [upstream.engine.speech.event([(token, None)]) for token in said] + [
        upstream.engine.speech.event([], "length")
    ]

    def short(handler: Any) -> None:
        handler.begin()
        for event in events:
            handler.event(event)

    upstream.engine.misbehave = short
    choice = upstream.door.chat(PROMPT, max_tokens=50, stop=["cd"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "length")


def test_events_that_say_only_what_is_new_are_understood_too(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("sglang")
    whole = upstream.door.chat(PROMPT, temperature=0, max_tokens=8, logprobs=True).json()["choices"]
    upstream.engine.speech.cumulative = False  # type: ignore[attr-defined]
    assert upstream.door.chat(PROMPT, temperature=0, max_tokens=8, logprobs=True).json()["choices"] == whole


def test_a_conversation_stays_in_its_session_and_keys_share_no_cache(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("vllm", sessions=2)
    upstream.door.chat("first", temperature=0, max_tokens=3)
    upstream.door.chat("first", temperature=0, max_tokens=3)
    another = upstream.door.gateway.pool.slots[0].prepare("another key")
    next(
        iter(
            another.generate(
                [40], max_tokens=1, sampling=Sampling(), stop=(), logprobs=None, prompt_logprobs=False, mask=None
            )
        )
    )
    salts = [json.loads(body)["cache_salt"] for body in upstream.engine.bodies]
    assert salts[0] == salts[1]
    assert salts[2] != salts[0]


@pytest.fixture
def bytewise(tmp_path: Path, tiny: Callable[[str], Path]) -> Path:
    """A tiny model whose tokens are bytes, so that characters are several tokens."""
    alphabet = {letter: number for number, letter in enumerate(("</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    directory = tmp_path / "bytewise"
    settings = json.loads((tiny("llama") / "config.json").read_text()) | {
        "vocab_size": len(alphabet),
        "eos_token_id": 0,
    }
    config = transformers.LlamaConfig(**settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", NAMES)
def test_characters_of_several_tokens_arrive_whole(
    open_upstream: Callable[..., Upstream], bytewise: Path, kind: str
) -> None:
    upstream = open_upstream(kind, base=bytewise)
    text = "naïve 日本 🙂 fin"
    ids = upstream.door.gateway.tokenizer.encode(text)
    upstream.engine.says = upstream.model.key.to_server(ids)
    stream = upstream.door.complete("x", max_tokens=len(ids), stream=True)
    lines = [line[6:] for line in stream.text.splitlines() if line.startswith("data: {")]
    pieces = [json.loads(line)["choices"][0]["text"] for line in lines]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    cut = upstream.door.complete("x", max_tokens=len("naïve 日".encode()) - 1)
    assert cut.json()["choices"][0]["text"].startswith("naïve ")
