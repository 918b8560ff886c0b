"""Servers die, cables are pulled, machines freeze: the answer stays the same, and nothing is given out twice."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, dialler
from cutlayer.client.remote import Patience
from cutlayer.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.wire.transport import Connect, Transport

pytestmark = pytest.mark.model

TOKENS = 24
AT = 9
PROMPT = "Describe the sea in winter."


class Line:
    """A connection that can be cut."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.last: Transport

    def __call__(self) -> Transport:
        self.last = self._connect()
        return self.last


@pytest.fixture(scope="module")
def own_server(smollm2: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2.name) as process:
        yield process


@pytest.fixture
def line(own_server: ServerProcess) -> Line:
    return Line(dialler(own_server.url, keys=own_server.client_keys))


def tokens(line: Line, patience: Patience, fault: Callable[[], None] | None = None) -> tuple[list[int], int]:
    """Tokens as they were given out, and how often the connection was recovered."""
    with Client(line, Options(patience=patience)) as client:
        generation = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
        got = []
        for piece in generation:
            got.append(piece.token)
            if fault is not None and len(got) == AT:
                fault()
        return got, generation.result().resumes


def test_a_cut_connection_is_resumed(line: Line) -> None:
    expected, _ = tokens(line, Patience())
    got, resumes = tokens(line, Patience(), lambda: line.last.break_connection())  # type: ignore[attr-defined]
    assert got == expected
    assert resumes == 1


def test_a_killed_server_is_rebuilt_by_replay(own_server: ServerProcess, line: Line) -> None:
    expected, _ = tokens(line, Patience())

    def kill() -> None:
        own_server.kill()
        threading.Thread(target=own_server.start).start()

    got, resumes = tokens(line, Patience(), kill)
    assert got == expected
    assert resumes >= 1


def test_a_frozen_server_is_left_and_its_late_answers_are_fenced(own_server: ServerProcess, line: Line) -> None:
    expected, _ = tokens(line, Patience())

    def freeze() -> None:
        own_server.pause()
        threading.Timer(3, own_server.proceed).start()

    got, resumes = tokens(line, Patience(step_s=1.0), freeze)
    assert got == expected
    assert resumes >= 1


def test_a_server_that_stays_away_is_given_up_with_a_clear_error(own_server: ServerProcess, line: Line) -> None:
    def kill() -> None:
        own_server.kill()

    try:
        with pytest.raises(ConnectionLostError, match="gave up"):
            tokens(line, Patience(recover_s=1.0), kill)
    finally:
        own_server.start()
