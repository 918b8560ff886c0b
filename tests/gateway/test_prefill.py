"""Hints that a conversation is being typed: the answer has less to send, nothing is sent twice, and nobody waits for a hint."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from cutlayer.errors import InputError
from cutlayer.gateway.body import BodyLimits
from cutlayer.wire.token_book import TokenBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from .conftest import Door

CHAT, PREFILL = "/v1/chat/completions", "/v1/prefill"
LINE = "Who owes Ann twelve"
WHOLE = len("<Who owes Ann ")
"""Its tokens that are certain: one for the role, and one per character, the last blank included."""
PATIENT_S = 30


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def hint(door: Door, content: str, **headers: str) -> Any:
    return door.post(PREFILL, {"messages": user(content)}, **headers)


def cached(answer: Any) -> int:
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def positions(answer: Any) -> int:
    """Sent by the session up to then, repeats included."""
    return int(answer.headers["x-cutlayer-ledger"].partition(";")[0].removeprefix("positions="))


def until(happened: Callable[[], bool]) -> None:
    """Wait for what other threads do; fails after a while."""
    deadline = time.monotonic() + PATIENT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_answer_finds_what_was_sent_ahead_and_is_the_same(open_door: Callable[..., Door]) -> None:
    expected = open_door().chat(LINE, temperature=0).json()["choices"]
    door = open_door()
    ahead = hint(door, LINE)
    assert ahead.json() == {"object": "prefill", "model": "tiny", "prompt_tokens": WHOLE, "cached_tokens": 0}
    assert positions(ahead) == WHOLE
    answer = door.chat(LINE, temperature=0)
    assert answer.json()["choices"] == expected
    assert cached(answer) == WHOLE


def test_typing_a_question_releases_each_position_once(open_door: Callable[..., Door]) -> None:
    door = open_door()
    held = 0
    for end in range(len(LINE) + 1):
        said = hint(door, LINE[:end]).json()
        assert said["cached_tokens"] == held
        held = said["prompt_tokens"]
    assert held == WHOLE
    answer = door.chat(LINE, max_tokens=1)
    assert positions(answer) == answer.json()["usage"]["prompt_tokens"]


def test_what_is_deleted_is_rolled_back_and_does_not_change_the_answer(open_door: Callable[..., Door]) -> None:
    final = "Who owes Ann ten"
    expected = open_door().chat(final, temperature=0, max_tokens=5).json()["choices"]
    door = open_door()
    assert positions(hint(door, "Who owes Ann twelve ")) == len("<Who owes Ann twelve ")
    shorter = hint(door, "Who owes Ann ")
    assert shorter.json()["cached_tokens"] == shorter.json()["prompt_tokens"] == WHOLE
    assert positions(shorter) == len("<Who owes Ann twelve ")  # deleted words may come back, and are still held
    assert positions(hint(door, "Who owes Ann twelve ")) == len("<Who owes Ann twelve ")
    answer = door.chat(final, temperature=0, max_tokens=5)
    assert answer.json()["choices"] == expected
    assert cached(answer) == len("<Who owes Ann t")


def test_a_later_turn_is_sent_ahead_in_its_conversations_session(open_door: Callable[..., Door]) -> None:
    door = open_door()
    first = door.chat("hello", temperature=0, max_tokens=3).json()
    said = first["choices"][0]["message"]["content"]
    talk = [*user("hello"), {"role": "assistant", "content": said}, *user("and then ")]
    before = first["usage"]["prompt_tokens"]
    ahead = door.post(PREFILL, {"model": "tiny", "messages": talk}).json()
    assert ahead["cached_tokens"] >= before
    answer = door.post(CHAT, {"model": "tiny", "messages": talk, "max_tokens": 1})
    assert cached(answer) == ahead["prompt_tokens"]
    assert sum(slot.opened for slot in door.gateway.pool.slots) == 1


def test_keys_do_not_share_what_was_typed(open_door: Callable[..., Door]) -> None:
    keys = {"alice": "alice-key-0123456789", "bob": "bob-key-0123456789"}
    book = TokenBook({name: hashlib.sha256(key.encode()).digest() for name, key in keys.items()})
    door = open_door(keys=book)
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    body = {"model": "tiny", "messages": user(LINE), "max_tokens": 1}
    assert hint(door, LINE, **alice).json()["cached_tokens"] == 0
    assert hint(door, LINE, **bob).json()["cached_tokens"] == 0
    assert hint(door, LINE, **alice).json()["cached_tokens"] == WHOLE
    assert hint(door, LINE).status_code == 401
    door.gateway.pool.slots[1].discard()  # bob's
    assert cached(door.post(CHAT, body, **bob)) == 0
    assert cached(door.post(CHAT, body, **alice)) == WHOLE


def test_the_log_and_the_counters_tell_and_quote_nothing(open_door: Callable[..., Door]) -> None:
    door = open_door()
    hint(door, LINE), hint(door, LINE)
    line = door.log()[-1]
    assert (line["endpoint"], line["status"]) == (PREFILL, 200)
    assert (line["prompt_tokens"], line["cached_tokens"]) == (WHOLE, WHOLE)
    assert "Ann" not in json.dumps(door.log())
    metrics = door.http.get("/metrics").text
    assert f'cutlayer_gateway_requests_total{{endpoint="{PREFILL}",status="200"}} 2.0' in metrics
    assert f"cutlayer_gateway_positions_released_total {float(WHOLE)}" in metrics


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, None),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": user("hello "), "max_tokens": 3}, 400, "max_tokens"),
        ({"messages": user("hello "), "model": "other"}, 404, "model"),
        ({"messages": [{"role": "tool", "content": "x "}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type"),
        ({"messages": user("word " * 100)}, 400, "messages"),
        ({"messages": user("word " * 1000)}, 413, None),
        ([1], 400, None),
    ],
)
def test_what_is_no_hint_is_refused_and_sends_nothing(
    open_door: Callable[..., Door], body: Any, status: int, param: str | None
) -> None:
    door = open_door(body=BodyLimits(bytes=2000))
    refused = door.post(PREFILL, body)
    assert refused.status_code == status
    assert refused.json()["error"]["param"] == param
    assert door.gateway.session.released == 0
    assert door.http.post(PREFILL, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert door.http.get(PREFILL).headers["allow"] == "POST"


def test_a_template_that_refuses_is_not_quoted(open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch) -> None:
    door = open_door()

    def refuse(*_: Any) -> None:
        raise InputError("MYPRIVATEWORDS")

    monkeypatch.setattr(type(door.gateway.tokenizer), "render", refuse)
    for refused in (hint(door, "MYPRIVATEWORDS "), door.chat("MYPRIVATEWORDS")):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "messages"
        assert "MYPRIVATEWORDS" not in refused.text + json.dumps(door.log())


class Desk:
    """Asks a gateway on a socket, several things at once."""

    def __init__(self, door: Door, url: str, threads: ThreadPoolExecutor) -> None:
        self.door = door
        self.pool = door.gateway.pool
        self.url = url
        self._threads = threads

    def hint(self, content: str) -> Future[Any]:
        return self._post(PREFILL, {"messages": user(content)})

    def chat(self, content: str) -> Future[Any]:
        return self._post(CHAT, {"model": "tiny", "messages": user(content), "max_tokens": 1, "temperature": 0})

    def _post(self, path: str, body: Any) -> Future[Any]:
        return self._threads.submit(lambda: httpx2.post(f"{self.url}{path}", json=body, timeout=PATIENT_S))

    def until_in_use(self, count: int) -> None:
        until(lambda: self.pool.in_use == count)

    def until_cancelled(self) -> None:
        until(lambda: any(run._cancelled.is_set() for run in self.door.gateway._runs))


@pytest.fixture
def desk(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Any:
    """With as many sessions as the test's parameter says; what is in progress at the end is let go on."""
    door = open_door(served=True, sessions=request.param, queue=4)
    with door.served() as (url, _), ThreadPoolExecutor(4) as threads:
        yield Desk(door, url, threads)
        door.line.proceed()


def refused(answer: Any) -> bool:
    return answer.status_code == 429 and answer.json()["error"]["code"] == "no_free_session"


@pytest.mark.parametrize("desk", [1], indirect=True)
def test_a_hint_waits_for_nobody(desk: Desk) -> None:
    desk.door.line.hold()
    answer = desk.chat("another question")
    desk.until_in_use(1)
    assert refused(desk.hint(LINE).result(PATIENT_S))
    assert desk.pool.waiting == 0
    desk.door.line.proceed()
    assert answer.result(PATIENT_S).status_code == 200
    assert desk.hint(LINE).result(PATIENT_S).status_code == 200


@pytest.mark.parametrize("desk", [2], indirect=True)
@pytest.mark.parametrize("first", ["hint", "chat"])
def test_a_conversation_is_not_sent_twice_at_once(desk: Desk, first: str) -> None:
    """Even where another session is free."""
    desk.door.line.hold()
    under_way = getattr(desk, first)(LINE)
    desk.until_in_use(1)
    assert refused(desk.hint(f"{LINE} crowns ").result(PATIENT_S))
    other = desk.hint("What does the whole of it cost ")
    desk.until_in_use(2)
    desk.door.line.proceed()
    assert under_way.result(PATIENT_S).status_code == other.result(PATIENT_S).status_code == 200


@pytest.mark.parametrize("desk", [2], indirect=True)
def test_a_question_sent_while_its_hint_is_under_way_goes_on_in_its_session(
    desk: Desk, open_door: Callable[..., Door]
) -> None:
    expected = open_door().chat(LINE, max_tokens=1, temperature=0).json()["choices"]
    desk.door.line.hold()
    ahead = desk.hint(LINE)
    desk.until_in_use(1)
    asked = desk.chat(LINE)
    desk.until_cancelled()
    desk.door.line.proceed()
    answer = asked.result(PATIENT_S)
    assert answer.json()["choices"] == expected
    assert cached(answer) == WHOLE
    assert positions(answer) == answer.json()["usage"]["prompt_tokens"]
    assert refused(ahead.result(PATIENT_S))
    assert sum(slot.opened for slot in desk.pool.slots) == 1


@pytest.mark.parametrize("desk", [1], indirect=True)
def test_an_answer_that_would_wait_for_a_hint_ends_it(desk: Desk) -> None:
    desk.door.line.hold()
    ahead = desk.hint(LINE)
    desk.until_in_use(1)
    asked = desk.chat("another question")
    desk.until_cancelled()
    desk.door.line.proceed()
    assert asked.result(PATIENT_S).status_code == 200
    assert refused(ahead.result(PATIENT_S))


@pytest.mark.parametrize("desk", [1], indirect=True)
def test_who_leaves_frees_the_session(desk: Desk) -> None:
    desk.door.line.hold()
    connection = http.client.HTTPConnection(desk.url.removeprefix("http://"), timeout=PATIENT_S)
    connection.request("POST", PREFILL, json.dumps({"messages": user(LINE)}), {"Content-Type": "application/json"})
    desk.until_in_use(1)
    connection.close()
    until(lambda: any(line.get("status") == 499 for line in desk.door.log()))
    desk.door.line.proceed()
    desk.until_in_use(0)
    assert desk.chat(LINE).result(PATIENT_S).status_code == 200


def test_shutting_down_takes_no_hints(open_door: Callable[..., Door]) -> None:
    door = open_door()
    door.gateway.pool.drain()
    assert hint(door, LINE).status_code == 503
    assert door.gateway.session.released == 0
