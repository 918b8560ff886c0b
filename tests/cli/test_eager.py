"""Prefill while the user types, against a server in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.eager import EagerPrefill
from cutlayer.client.connect import Client, Options
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.text.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LINE = "Who owes Ann twelve"


@pytest.fixture
def client(tiny_with_text: Callable[[str], Path]) -> Iterator[Client]:
    directory = tiny_with_text("llama")
    with (
        LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as server,
        Client(server.connect, Options(model=str(directory))) as client,
    ):
        yield client


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_whole_words_are_held_before_the_question_is_asked(client: Client) -> None:
    typed = [""]
    with EagerPrefill(client, [], lambda: typed[0]):
        typed[0] = LINE
        wait_for(lambda: len(client.held) > 0 and client.released >= len(LINE.rpartition(" ")[0]))
    before = client.released
    asked = client.generate([Message("user", LINE)], max_tokens=3)
    answer = asked.result()
    assert asked.reused > 0
    assert client.released - before < len(answer.prompt_token_ids) + 3
    client.forget()
    assert client.generate([Message("user", LINE)], max_tokens=3).result().token_ids == answer.token_ids


def test_what_was_typed_and_deleted_does_not_change_the_answer(client: Client) -> None:
    expected = client.generate([Message("user", LINE)], max_tokens=3).result().token_ids
    client.forget()
    typed = ["Something else entirely, "]
    with EagerPrefill(client, [], lambda: typed[0]):
        wait_for(lambda: len(client.held) > 0)
        typed[0] = LINE
    assert client.generate([Message("user", LINE)], max_tokens=3).result().token_ids == expected


def test_nothing_is_sent_twice(client: Client) -> None:
    messages = [Message("user", LINE)]
    assert client.prime(messages) > 0
    released = client.released
    assert client.prime(messages) == 0
    assert client.released == released


def test_a_line_too_long_for_the_session_is_left_to_the_question_itself(client: Client) -> None:
    with EagerPrefill(client, [], lambda: "word " * 5000) as eager:
        wait_for(lambda: not eager._thread.is_alive())
    assert client.generate([Message("user", "Hi")], max_tokens=1).result().token_ids
