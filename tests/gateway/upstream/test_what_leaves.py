"""No request that leaves the gateway holds text, or ids as the plain model knows them, whatever is asked and whatever fails."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.upstream.fake_engine import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Upstream

SECRET = "swordfish"
"""In every place where a client can write."""
FIELDS = {
    "vllm": {
        "model", "prompt", "cache_salt", "return_token_ids", "add_special_tokens", "stop_token_ids", "temperature", "top_p",
        "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "max_tokens",
        "stream", "logprobs", "return_tokens_as_token_ids", "prompt_logprobs",
    },
    "llamacpp": {
        "prompt", "n_predict", "stream", "return_tokens", "cache_prompt", "n_probs", "temperature", "top_k", "top_p", "min_p",
        "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
    },
    "sglang": {
        "input_ids", "sampling_params", "stream", "return_logprob", "top_logprobs_num", "logprob_start_len", "max_new_tokens",
        "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "sampling_seed",
    },
}  # fmt: skip
SALT = re.compile(r"[0-9a-f]{16}")


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield name
            yield from names(value)


def prompt_of(body: Any) -> list[int]:
    return list(body.get("prompt", body.get("input_ids")))


def check(upstream: Upstream, kind: str, *prompts: list[int], known: frozenset[int] = frozenset()) -> None:
    """All that the engine was sent.

    Args:
        prompts: plain ids of every request in turn; the last stands for all that follow.
        known: plain ids of biases.
    """
    key = upstream.model.key
    assert upstream.engine.bodies
    for number, (raw, headers) in enumerate(zip(upstream.engine.bodies, upstream.engine.headers, strict=True)):
        assert SECRET.encode() not in raw
        assert SECRET not in json.dumps(headers)
        body = json.loads(raw)
        for text in strings(body):
            assert len(text) <= len(upstream.model.name)
            assert text == upstream.model.name or SALT.fullmatch(text)
        biased = {int(name) for name in names(body) if name.isdigit()}
        biased |= {token for token, _ in body["logit_bias"]} if isinstance(body.get("logit_bias"), list) else set()
        assert set(names(body)) - {str(token) for token in biased} <= FIELDS[kind]
        assert biased <= set(key.to_server(sorted(known)))
        plain = prompts[min(number, len(prompts) - 1)]
        assert prompt_of(body) == key.to_server(plain)
        assert prompt_of(body) != plain
        ends = body.get("sampling_params", body).get("stop_token_ids", [])
        assert key.from_server(ends) == ([] if kind == "llamacpp" else sorted(upstream.door.gateway.tokenizer.stop_ids))


@pytest.mark.parametrize("kind", NAMES)
def test_everything_a_client_can_ask(open_upstream: Callable[..., Upstream], kind: str) -> None:
    upstream = open_upstream(kind)
    door = upstream.door
    ids = door.post("/v1/tokenize", {"messages": [{"role": "user", "content": SECRET}]}).json()["tokens"]
    secret = frozenset(door.gateway.tokenizer.encode(SECRET, special=False))
    bias = {str(token): 1.5 for token in secret}
    everything = {
        "stop": [SECRET, f"{SECRET}!"], "logit_bias": bias, "user": SECRET, "metadata": {SECRET: SECRET},
        "prompt_cache_key": SECRET, "safety_identifier": SECRET, "service_tier": SECRET, "seed": 3, "n": 2, "temperature": 0.3,
        "top_k": 4, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    for stream in (False, True):
        headers = {"x-request-id": SECRET, "authorization": f"Bearer {SECRET}", "cookie": SECRET}
        body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "stream": stream}
        assert door.post("/v1/chat/completions", {**body, **everything}, **headers).status_code == 200
    check(upstream, kind, ids, known=secret)
    upstream.engine.bodies.clear(), upstream.engine.headers.clear()
    del everything["top_logprobs"]
    plain = door.gateway.tokenizer.encode(SECRET)
    for prompt in (SECRET, [SECRET], plain, [plain]):
        assert door.complete(prompt, **{**everything, "logprobs": 1, "echo": kind != "llamacpp"}).status_code == 200
    check(upstream, kind, plain, known=secret)


@pytest.mark.parametrize("kind", NAMES)
def test_refusals_send_nothing(open_upstream: Callable[..., Upstream], kind: str) -> None:
    upstream = open_upstream(kind)
    schema = {"type": "object", "properties": {SECRET: {"const": SECRET}}}
    named = {"type": "json_schema", "json_schema": {"name": SECRET, "schema": schema}}
    for fields in (
        {"response_format": named}, {"suffix": SECRET}, {"tools": [{"type": "function", "function": {"name": SECRET}}]},
        {"logit_bias": {"101": 1}}, {"temperature": 3}, {"model": SECRET}, {SECRET: SECRET},
    ):  # fmt: skip
        assert upstream.door.chat(SECRET, **fields).status_code in (400, 404)
    assert upstream.door.complete([0, 101]).status_code == 400
    assert upstream.door.complete(SECRET * 40).status_code == 400
    assert not upstream.engine.bodies


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_errors_of_the_engine_bring_no_second_try(
    open_upstream: Callable[..., Upstream], kind: str, status: int
) -> None:
    upstream = open_upstream(kind)
    upstream.engine.misbehave = lambda handler: handler.answer(status, {"error": {"message": "a stranger's words"}})
    ids = upstream.door.post("/v1/tokenize", {"messages": [{"role": "user", "content": SECRET}]}).json()["tokens"]
    answer = upstream.door.chat(SECRET)
    assert answer.status_code >= 500
    assert "stranger" not in answer.text
    assert len(upstream.engine.bodies) == 1
    check(upstream, kind, ids)
    assert SECRET not in json.dumps(upstream.door.log())


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


@given(texts=st.lists(ASCII, min_size=1, max_size=3))
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_whatever_is_said(open_upstream: Callable[..., Upstream], texts: list[str]) -> None:
    upstream = open_upstream("vllm")
    upstream.engine.says = [5] * 10
    for text in texts:
        assert upstream.door.complete(text, max_tokens=1, stop=[text]).status_code == 200
    check(upstream, "vllm", *(upstream.door.gateway.tokenizer.encode(text) for text in texts))
