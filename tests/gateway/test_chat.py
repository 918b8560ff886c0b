"""`/v1/chat/completions` in front of a tiny model: the answer is the client's own, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.text.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Door

SECRET = "MYPRIVATEWORDS"
MARKED = "Zq7"


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door()


def events(answer: Any) -> list[Any]:
    """Of a stream, the last one as it is."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(item) if item.startswith("{") else item for item in data]


def joined(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_answer_is_the_clients(door: Door) -> None:
    answer = door.chat(temperature=0)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    with door.gateway.session.another() as session:
        expected = session.generate([Message("user", "hello")], max_tokens=8).result()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert choice["logprobs"] is None
    tokens = len(expected.token_ids)
    prompt = len(expected.prompt_token_ids)
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_headers_say_what_left_this_machine(door: Door) -> None:
    answer = door.chat(temperature=0, max_tokens=3)
    assert answer.headers["x-cutlayer-cut"] == "2:4 of 6"
    assert answer.headers["x-cutlayer-defence"] == "none"
    usage = answer.json()["usage"]
    positions = usage["prompt_tokens"] + usage["completion_tokens"] - 1  # the last token is not sent
    assert answer.headers["x-cutlayer-ledger"] == f"positions={positions}; defence=none"
    assert answer.headers["x-cutlayer-readable"] == door.gateway.statement
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("given", ["abc-1", "x" * 128, "a b", "x" * 129, "é", ""])
def test_request_ids_are_given_back_if_they_are_plain(door: Door, given: str) -> None:
    answer = door.http.get("/health", headers={"x-request-id": given.encode("latin-1")})
    plain = given.isascii() and " " not in given and 1 <= len(given) <= 128
    assert (answer.headers["x-request-id"] == given) is plain


def test_stream_joins_to_the_whole_answer(door: Door) -> None:
    fields: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = door.chat(**fields).json()
    *chunks, last, done = events(door.chat(**fields, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert joined(chunks) == whole["choices"][0]["message"]["content"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    entries = [
        entry
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [entry["token"] for entry in entries] == [
        entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]
    ]


def test_stream_without_usage_has_no_such_field(door: Door) -> None:
    *chunks, done = events(door.chat(stream=True))
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_several_choices_differ_and_a_seed_repeats_them(door: Door) -> None:
    def texts(seed: int) -> list[str]:
        body = door.chat(n=3, seed=seed, temperature=1.5).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        return [choice["message"]["content"] for choice in body["choices"]]

    assert len(set(texts(1))) > 1
    assert texts(1) == texts(1) != texts(2)
    chunks = events(door.chat(n=3, seed=1, temperature=1.5, stream=True))
    assert [joined(chunks, index) for index in range(3)] == texts(1)


def test_logprobs_spell_the_answer(door: Door) -> None:
    [choice] = door.chat(temperature=0, logprobs=True, top_logprobs=3).json()["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]  # greedy
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0


def test_stop_strings_end_answer_and_logprobs(door: Door) -> None:
    text = door.chat(temperature=0).json()["choices"][0]["message"]["content"]
    stop = text[3:5]
    at = text.index(stop)
    for given in (stop, ["never there", stop]):
        [choice] = door.chat(temperature=0, stop=given, logprobs=True).json()["choices"]
        assert choice["message"]["content"] == text[:at]
        assert choice["finish_reason"] == "stop"
        assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == text[:at]
        assert joined(events(door.chat(temperature=0, stop=given, stream=True))) == text[:at]


def test_bias_and_penalties_reach_the_sampler(door: Door) -> None:
    token = door.post("/v1/tokenize", {"prompt": "Q"}).json()["tokens"][0]
    body = door.chat(temperature=0, logit_bias={str(token): 100}).json()
    assert body["choices"][0]["message"]["content"] == "Q" * 8
    body = door.chat(temperature=0, logit_bias={str(token): 60}, frequency_penalty=2, presence_penalty=2, max_tokens=40)
    assert set(body.json()["choices"][0]["message"]["content"]) != {"Q"}


def test_next_turn_sends_only_what_is_new(door: Door) -> None:
    first = door.chat(temperature=0).json()
    reply = {
        "role": "assistant",
        "content": first["choices"][0]["message"]["content"],
        "refusal": None,
        "annotations": [],
    }
    turns = [
        {"role": "user", "content": "hello"},
        reply,
        {"role": "user", "content": [{"type": "text", "text": "go on"}]},
    ]
    second = door.chat(messages=turns, temperature=0).json()
    held = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= held - 1


def test_developer_messages_are_system_messages(door: Door) -> None:
    asked = {"model": "tiny", "messages": [{"role": "developer", "content": "x"}]}
    same = {"model": "tiny", "messages": [{"role": "system", "content": "x"}]}
    assert door.post("/v1/tokenize", asked).json() == door.post("/v1/tokenize", same).json()


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": SECRET}}]}, 400, "tools"),
        ({"functions": [{"name": SECRET}]}, 400, "functions"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"modalities": ["audio"]}, 400, "modalities"),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort"),
        ({"store": True}, 400, "store"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"max_token": 1}, 400, "max_token"),
        ({"n": 17}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "8"}, 400, "max_tokens"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"stop": [""]}, 400, "stop[0]"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"logit_bias": {SECRET: 1}}, 400, None),
        ({"seed": 1 << 70}, 400, "seed"),
        ({"model": SECRET}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": SECRET, "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": SECRET}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]}, 400, None),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": SECRET, "name": SECRET}]}, 400, "messages[0].name"),
        ({"messages": [{"role": "user", "content": SECRET * 1000}]}, 400, "messages"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": SECRET}}}, 400, None),
        ({"metadata": SECRET}, 400, "metadata"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name_and_nothing_is_quoted(
    door: Door, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = door.chat(SECRET + MARKED, **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert SECRET not in answer.text
    assert MARKED not in answer.text
    assert SECRET not in json.dumps(door.log())
    assert door.gateway.pool.in_use == 0


def test_harmless_fields_change_nothing(door: Door) -> None:
    plain = door.chat(temperature=0).json()["choices"]
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True,
        "tools": [], "tool_choice": "none", "functions": None, "safety_identifier": "s", "prompt_cache_key": "k",
        "modalities": ["text"], "top_k": -1, "logit_bias": None, "response_format": {"type": "text"},
    }  # fmt: skip
    answer = door.chat(temperature=0, **harmless)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain


def test_log_lines_have_counts_and_no_content(door: Door) -> None:
    door.chat(SECRET, temperature=0)
    door.chat(SECRET, temperature=0, stream=True)
    door.http.get(f"/v1/models/{SECRET}")
    door.http.get(f"/{SECRET}")
    lines = [line for line in door.log() if line["event"] == "answered"]
    assert [line["endpoint"] for line in lines] == ["/v1/chat/completions"] * 2 + ["/v1/models/{id}", "other"]
    assert [line["status"] for line in lines] == [200, 200, 404, 404]
    assert lines[0]["completion_tokens"] == lines[1]["completion_tokens"] > 0
    assert lines[0]["prompt_tokens"] > len(SECRET)
    everything = json.dumps(door.log()) + door.http.get("/metrics").text
    assert SECRET not in everything


def test_metrics_count(door: Door) -> None:
    usage = door.chat(temperature=0).json()["usage"]
    door.chat(n=0)
    text = door.http.get("/metrics").text
    assert 'cutlayer_gateway_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0' in text
    assert 'cutlayer_gateway_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0' in text
    assert f'cutlayer_gateway_tokens_total{{kind="prompt"}} {usage["prompt_tokens"]}.0' in text
    assert f'cutlayer_gateway_tokens_total{{kind="completion"}} {usage["completion_tokens"]}.0' in text
    assert "cutlayer_gateway_first_token_seconds_count 1.0" in text
    assert f"cutlayer_gateway_inter_token_seconds_count {usage['completion_tokens'] - 1}.0" in text
    assert "cutlayer_gateway_sessions_in_use 0.0" in text
    assert "cutlayer_gateway_queue_length 0.0" in text
