"""Engines that lie, stall, break off or are the wrong ones: typed errors in OpenAI's shape, and the next request is answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.gateway.upstream.fake_engine import NAMES, Handler

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Upstream

PATIENT_S = 30
V = 101


def says(*events: Any) -> Callable[[Handler], None]:
    """Begins a stream, says these events, and closes the connection."""

    def answer(handler: Handler) -> None:
        handler.begin()
        for event in events:
            handler.event(event)

    return answer


def word(upstream: Upstream) -> int:
    """What the engine calls a token that ends no answer. Keys are drawn anew, so no fixed id is one."""
    return upstream.model.key.to_server([7])[0]


def refused(upstream: Upstream, status: int = 502, **fields: Any) -> str:
    """The error's message; whole and streamed are answered alike, and afterwards all is well."""
    answers = [upstream.door.chat("hello", max_tokens=5, stream=stream, **fields) for stream in (False, True)]
    messages = set()
    for answer in answers:
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["type"] == "server_error"
        messages.add(error["message"])
    upstream.engine.misbehave = None
    assert upstream.door.chat("hello").status_code == 200
    assert len(messages) == 1
    return str(messages.pop())


@pytest.mark.parametrize("token", [V, 1 << 31, 1 << 70, -1])
def test_ids_outside_the_vocabulary(upstream: Upstream, token: int) -> None:
    upstream.engine.misbehave = says(upstream.engine.speech.event([(token, None)]))
    refused(upstream)


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"",
        b"[]",
        b"{}",
        b'"text"',
        b'{"choices": "many"}',
        b'{"error": {"message": "no"}}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_events_that_are_none(upstream: Upstream, event: bytes) -> None:
    upstream.engine.misbehave = says(event)
    assert "text" not in refused(upstream).replace("its interface", "")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "0.5", "null", '"high"'])
def test_log_probabilities_that_are_none(upstream: Upstream, value: str) -> None:
    event = json.dumps(upstream.engine.speech.event([(word(upstream), [(word(upstream), -0.125)])]))
    assert event.count("-0.125") == 2
    upstream.engine.misbehave = says(event.replace("-0.125", value).encode())
    refused(upstream, logprobs=True, top_logprobs=1)


def test_log_probabilities_of_ids_outside_the_vocabulary(upstream: Upstream) -> None:
    upstream.engine.misbehave = says(
        upstream.engine.speech.event([(word(upstream), [(word(upstream), -0.1), (V, -0.2)])])
    )
    refused(upstream, logprobs=True, top_logprobs=2)


def test_log_probabilities_left_out(upstream: Upstream) -> None:
    upstream.engine.misbehave = says(upstream.engine.speech.event([(word(upstream), None)]))
    assert "left out" in refused(upstream, logprobs=True)


def test_streams_that_end_too_soon(upstream: Upstream) -> None:
    upstream.engine.misbehave = says(upstream.engine.speech.event([(word(upstream), None)]))
    whole = upstream.door.chat("hello", max_tokens=5)
    assert whole.status_code == 502
    streamed = upstream.door.chat("hello", max_tokens=5, stream=True)
    assert streamed.status_code == 200
    last = [line for line in streamed.text.splitlines() if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "server_failed"
    upstream.engine.misbehave = says()
    refused(upstream)


def test_more_tokens_than_asked_for_are_not_taken(upstream: Upstream) -> None:
    many = [upstream.engine.speech.event([(token, None) for token in [word(upstream)] * 9])]
    upstream.engine.misbehave = says(*many)
    assert upstream.door.chat("hello", max_tokens=5).json()["usage"]["completion_tokens"] == 5


def test_tokens_that_do_not_add_up(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("sglang")
    for count, ids in ((3, [word(upstream)]), (0, [word(upstream)])):
        wrong = {"output_ids": ids, "meta_info": {"completion_tokens": count, "finish_reason": None}}
        upstream.engine.misbehave = says(upstream.engine.speech.event([(word(upstream), None)]), wrong)
        assert upstream.door.chat("hello").status_code == 502


def test_another_prompts_scores(open_upstream: Callable[..., Upstream]) -> None:
    for kind in ("vllm", "sglang"):
        upstream = open_upstream(kind)
        speech = upstream.engine.speech
        likely = [[(token, -1.0) for token in range(V)]] * 8
        for other in ([1, 2, 3], [4] * 8, []):
            asked = {"prompt": other, "input_ids": other, "prompt_logprobs": 1, "top_logprobs_num": 1}
            content = speech.scores(likely[: len(other)], asked) if other else {}
            upstream.engine.misbehave = lambda handler, content=content: handler.answer(200, content)
            answer = upstream.door.complete("good day", echo=True, logprobs=1, max_tokens=0)
            assert answer.status_code == 502, kind


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: {", b"\0" * 2000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_http(open_upstream: Callable[..., Upstream], sent: bytes) -> None:
    upstream = open_upstream()
    upstream.engine.misbehave = lambda handler: handler.wfile.write(sent)
    refused(upstream)


def test_compressed_answers_are_not_unpacked(open_upstream: Callable[..., Upstream]) -> None:
    def bomb(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b" + b"\0" * 100)

    upstream = open_upstream()
    upstream.engine.misbehave = bomb
    refused(upstream)


def test_redirects_are_not_followed(open_upstream: Callable[..., Upstream]) -> None:
    upstream, other = open_upstream(), open_upstream()

    def elsewhere(handler: Handler) -> None:
        handler.send_response(307)
        handler.send_header("Location", other.engine.url + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    upstream.engine.misbehave = elsewhere
    assert "307" in refused(upstream)
    assert not other.engine.bodies


def test_proxies_of_the_environment_are_not_used(
    open_upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_upstream()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.engine.url)
    upstream = open_upstream()
    assert upstream.door.chat("hello").status_code == 200
    assert not other.engine.bodies


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_engine_is_a_503(open_upstream: Callable[..., Upstream], status: int) -> None:
    upstream = open_upstream()
    upstream.engine.misbehave = lambda handler: handler.answer(status, {})
    answer = upstream.door.chat("hello")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def stalls(handler: Handler) -> None:
    handler.begin()
    time.sleep(1.5)


def pings(handler: Handler) -> None:
    """Comments and empty events keep a connection alive, and are no answer."""
    handler.begin()
    for _ in range(100):
        handler.wfile.write(b": ping\n\n")
        time.sleep(0.02)


def trickles(handler: Handler) -> None:
    handler.begin()
    for _ in range(100):
        handler.wfile.write(b"d")
        time.sleep(0.02)


@pytest.mark.parametrize("behaviour", [stalls, pings, trickles, lambda handler: time.sleep(1.5)])
def test_an_engine_that_stalls_is_a_504(
    open_upstream: Callable[..., Upstream], behaviour: Callable[[Handler], None]
) -> None:
    upstream = open_upstream(silence_s=0.5)
    upstream.engine.misbehave = behaviour
    started = time.monotonic()
    assert "0.5 s" in refused(upstream, status=504)
    assert time.monotonic() - started < PATIENT_S


def test_endless_events_without_tokens_are_a_504(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream("vllm", silence_s=0.5)
    empty = upstream.engine.speech.event([])
    upstream.engine.misbehave = lambda handler: [
        handler.begin(),
        *(handler.event(empty) or time.sleep(0.01) for _ in range(500)),
    ]
    refused(upstream, status=504)


def test_an_endless_event_is_a_502(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream()

    def endless(handler: Handler) -> None:
        handler.begin()
        handler.wfile.write(b"data: ")
        while True:
            handler.wfile.write(b" " * 65536)

    upstream.engine.misbehave = endless
    assert "longer" in refused(upstream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_the_engine_is_left_when_the_client_leaves(
    open_upstream: Callable[..., Upstream], kind: str, stream: bool
) -> None:
    upstream = open_upstream(kind, served=True, sessions=1)
    engine, gateway = upstream.engine, upstream.door.gateway
    engine.go_on.clear()
    with upstream.door.served() as (url, _):
        host, port = url.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)), timeout=PATIENT_S)
        body = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 150, "stream": stream,
             "logit_bias": {"2": -100}}
        )  # fmt: skip
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: bool(engine.bodies) and gateway.pool.in_use == 1)
        if stream:
            assert client.recv(12) == b"HTTP/1.1 200"
        client.close()
        until(lambda: gateway.pool.in_use == 0)  # at once, although the engine says nothing
        engine.go_on.set()
        assert engine.left.wait(PATIENT_S)


def test_stopping_does_not_wait_for_an_engine_that_stalls(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream(served=True, sessions=1, grace_s=0.1)
    upstream.engine.go_on.clear()
    answers: list[Any] = []
    with upstream.door.served() as (url, server):
        import httpx2

        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 150}
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60))
        )
        asking.start()
        until(lambda: upstream.door.gateway.pool.in_use == 1 and bool(upstream.engine.bodies))
        started = time.monotonic()
        server.should_exit = True
        asking.join(PATIENT_S)
    assert time.monotonic() - started < PATIENT_S
    assert answers[0].status_code == 503


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_an_engine_that_is_away_is_a_503_and_not_ready(open_upstream: Callable[..., Upstream]) -> None:
    upstream = open_upstream()
    upstream.engine.__exit__(None, None, None)
    assert upstream.door.chat("hello").status_code == 503
    assert upstream.door.http.get("/ready").status_code == 503
