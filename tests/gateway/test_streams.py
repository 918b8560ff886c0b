"""Over a real socket: clients that leave, streams that wait, a server that goes away, and the end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from cutlayer.client.remote import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Door

LONG = {"max_tokens": 150, "temperature": 0, "logit_bias": {"2": -100}}
"""Far more tokens than anybody waits for; the model is kept from ending the answer."""
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
PATIENT_S = 30


def until(happened: Callable[[], bool]) -> None:
    """Wait for what other threads do; fails after a while."""
    deadline = time.monotonic() + PATIENT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door(served=True, sessions=1, queue=1, ping_s=0.2)


@pytest.fixture
def url(door: Door) -> Iterator[str]:
    with door.served() as (url, _):
        yield url


def ask(url: str, **fields: Any) -> Any:
    return httpx2.post(f"{url}/v1/chat/completions", json={**BODY, **fields}, timeout=PATIENT_S)


class Stream:
    """A raw request whose answer is read as it comes."""

    def __init__(self, url: str, **fields: Any) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENT_S)
        body = json.dumps({**BODY, "stream": True, **fields})
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        self.answer: Any = None

    def open(self) -> Stream:
        self.answer = self.connection.getresponse()
        return self

    def line(self) -> str:
        return str(self.answer.readline().decode())

    def leave(self) -> None:
        if self.answer is not None:
            self.answer.close()
        self.connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_session_at_once(door: Door, url: str, stream: bool) -> None:
    expected = ask(url, temperature=0, max_tokens=5).json()["choices"]
    door.line.hold()
    asked = Stream(url, **{**LONG, "stream": stream})
    until(lambda: door.gateway.pool.in_use == 1)
    if stream:
        door.line.proceed()
        asked.open().line()
    asked.leave()
    until(lambda: bool(door.log()) and door.log()[-1].get("status") in (200, 499) and len(answered(door)) == 2)
    door.line.proceed()
    until(lambda: door.gateway.pool.in_use == 0)
    tokens = door.gateway.session.held
    assert len(tokens) < 100  # of 150
    assert ask(url, temperature=0, max_tokens=5).json()["choices"] == expected


def answered(door: Door) -> list[dict[str, Any]]:
    return [line for line in door.log() if line["event"] == "answered"]


def test_who_leaves_the_queue_is_forgotten(door: Door, url: str) -> None:
    door.line.hold()
    first = Stream(url, **LONG)
    until(lambda: door.gateway.pool.in_use == 1)
    second = Stream(url, **LONG)
    until(lambda: door.gateway.pool.waiting == 1)
    refused = ask(url)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    second.leave()
    until(lambda: door.gateway.pool.waiting == 0)
    first.leave()
    door.line.proceed()
    until(lambda: door.gateway.pool.in_use == 0)
    assert ask(url, max_tokens=3).status_code == 200


def test_a_stream_that_waits_is_kept_alive_and_then_answers(door: Door, url: str) -> None:
    whole = ask(url, temperature=0, max_tokens=5).json()["choices"][0]["message"]["content"]
    door.line.hold()
    stream = Stream(url, temperature=0, max_tokens=5).open()  # headers come although no token has
    assert stream.answer.status == 200
    assert stream.line().startswith(": ping")
    door.line.proceed()
    text = ""
    while (line := stream.line()) != "data: [DONE]\n":
        if line.startswith("data: "):
            text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    assert text == whole
    stream.leave()


def test_a_stream_that_waits_in_the_queue_is_kept_alive_too(door: Door, url: str) -> None:
    door.line.hold()
    first = Stream(url, **LONG)
    until(lambda: door.gateway.pool.in_use == 1)
    second = Stream(url, temperature=0, max_tokens=5).open()
    assert second.answer.status == 200
    assert second.line().startswith(": ping")
    assert door.gateway.pool.waiting == 1
    second.leave()
    until(lambda: door.gateway.pool.waiting == 0)
    third = Stream(url, temperature=0, max_tokens=5).open()
    assert third.line().startswith(": ping")
    first.leave()
    door.line.proceed()
    assert third.answer.read().decode().splitlines()[-2] == "data: [DONE]"
    third.leave()
    until(lambda: door.gateway.pool.in_use == 0)


def test_requests_at_once_are_answered_as_alone(open_door: Callable[..., Door]) -> None:
    door = open_door(served=True, sessions=3, queue=20)
    with door.served() as (url, _):
        prompts = [f"question {i}" * (i + 1) for i in range(6)]

        def content(prompt: str) -> str:
            messages = [{"role": "user", "content": prompt}]
            return str(
                ask(url, messages=messages, temperature=0, max_tokens=12).json()["choices"][0]["message"]["content"]
            )

        alone = {prompt: content(prompt) for prompt in prompts}
        together: dict[str, str] = {}
        threads = [threading.Thread(target=lambda p=prompt: together.update({p: content(p)})) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone


def test_a_lost_server_is_a_503_and_not_ready_until_it_is_back(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    door = open_door(served=True, sessions=1, patience=Patience(recover_s=0.2))
    real, gone = door.line._server.connect, threading.Event()
    opened: list[Any] = []

    def connect() -> Any:
        if gone.is_set():
            from cutlayer.errors import ConnectionLostError

            raise ConnectionLostError("nobody there")
        opened.append(real())
        return opened[-1]

    monkeypatch.setattr(door.line._server, "connect", connect)
    with door.served() as (url, _):
        expected = ask(url, temperature=0, max_tokens=5).json()["choices"]
        assert httpx2.get(f"{url}/ready").status_code == 200
        gone.set()
        door.gateway.session._remote._transport.break_connection()  # type: ignore[attr-defined]
        for fields in ({}, {"stream": True}):
            lost = ask(url, **fields)
            assert lost.status_code == 503
            assert int(lost.headers["retry-after"]) >= 1
            assert lost.json()["error"]["type"] == "server_error"
        assert httpx2.get(f"{url}/ready").status_code == 503
        assert httpx2.get(f"{url}/health").status_code == 200
        gone.clear()
        assert ask(url, temperature=0, max_tokens=5).json()["choices"] == expected
        until(lambda: httpx2.get(f"{url}/ready").status_code == 200)


def test_stopping_lets_an_answer_finish(open_door: Callable[..., Door]) -> None:
    door = open_door(served=True, sessions=2, grace_s=PATIENT_S)
    with door.served() as (url, server):
        before = len(door.line._server.service.table)
        door.line.hold()
        stream = Stream(url, max_tokens=20, temperature=0, logit_bias={"2": -100})
        until(lambda: door.gateway.pool.in_use == 1)
        server.should_exit = True
        until(lambda: door.gateway.pool._draining)
        assert ask(url).status_code == 503
        door.line.proceed()
        lines = stream.open().answer.read().decode().splitlines()
        assert lines[-2] == "data: [DONE]"
        stream.leave()
    assert len(door.line._server.service.table) == before - 1  # the session was closed at the server


def test_stopping_does_not_wait_for_ever(open_door: Callable[..., Door]) -> None:
    door = open_door(served=True, sessions=1, grace_s=0)
    with door.served() as (url, server):
        stream = Stream(url, **LONG).open()
        stream.line()
        door.line.hold()
        server.should_exit = True
        until(lambda: door.gateway._runs and all(run._cancelled.is_set() for run in door.gateway._runs))
        door.line.proceed()
        lines = stream.answer.read().decode().splitlines()
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert data[-1]["error"]["code"] == "server_unavailable"
        assert "data: [DONE]" not in lines
        stream.leave()
