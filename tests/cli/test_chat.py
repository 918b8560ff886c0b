"""`cutlayer chat` with standard input and output that are no terminal."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.chat import chat
from cutlayer.cli.client_options import ConnectOptions
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def at(tiny_with_text: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectOptions]:
    """A tiny model in this process."""
    directory = tiny_with_text("llama")
    with LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as server:
        monkeypatch.setattr(ConnectOptions, "dialler", lambda self: server.connect)
        yield ConnectOptions(server="ws://127.0.0.1:1", model=str(directory))


def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def answers(out: str) -> list[str]:
    """Without the lines that the server in this process logs."""
    return [line for line in out.splitlines() if "[info" not in line]


def test_watch_prints_what_the_server_reads_after_each_answer(
    at: ConnectOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("Ann owes 12.\nWho?\n", monkeypatch)
    assert chat(at=at, max_tokens=4, watch=True) == 0
    watched = capsys.readouterr()
    readings = [line for line in watched.err.splitlines() if line.startswith("The server has read")]
    assert readings[0].startswith("The server has read 12 of 12 tokens you wrote and ")
    assert readings[1].startswith("The server has read 16 of 16 tokens you wrote and ")
    assert "What the server reads:\nAnn owes 12.\n" in watched.err
    assert watched.err.count("B sent") == 2

    typed("Ann owes 12.\nWho?\n", monkeypatch)
    assert chat(at=at, max_tokens=4) == 0
    plain = capsys.readouterr()
    assert answers(plain.out) == answers(watched.out)
    assert len(answers(plain.out)) >= 2
    assert "The server has read" not in plain.err


def test_chat_says_first_what_was_measured_at_its_setting(
    at: ConnectOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cutlayer.audit.measured.table", lambda: ())
    typed("", monkeypatch)
    assert chat(at=at) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "easured" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Not measured for this setting: run `cutlayer audit run")


def test_a_prompt_that_does_not_fit_is_refused_and_the_talk_goes_on(
    at: ConnectOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("x" * 10_000 + "\nHi\n", monkeypatch)
    assert chat(at=at, max_tokens=2, watch=True) == 0
    errors = capsys.readouterr().err
    assert "shorten it" in errors
    assert "The server has read 2 of 2 tokens" in errors
