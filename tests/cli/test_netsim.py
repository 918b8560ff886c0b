"""`cutlayer netsim` as a user meets it, over the kind of link that every machine can have."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SERVER = """
import socket, sys
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.recv(100).upper())
"""
_CLIENT = """
import socket, sys, time
host, port = sys.argv[1].split(":")
with socket.create_connection((host, int(port))) as connection:
    started = time.perf_counter()
    connection.sendall(sys.argv[2].encode())
    print(connection.recv(100).decode(), time.perf_counter() - started)
sys.exit(7)
"""


@pytest.fixture
def far(tmp_path: Path) -> tuple[str, ...]:
    """Options with a server of our own on the far side."""
    (tmp_path / "server.py").write_text(_SERVER)
    command = shlex.join([sys.executable, str(tmp_path / "server.py"), "{listen}"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return (f"--far={command}", f"--port={port}", "--kind=proxy")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cutlayer", "netsim", *arguments]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=60, check=False)


def test_command_talks_over_the_link_and_its_exit_code_is_passed_on(far: tuple[str, ...]) -> None:
    done = _run("--rtt=100", *far, "--", sys.executable, "-c", _CLIENT, "{server}", "hello {braces}")
    said, seconds = done.stdout.rsplit(maxsplit=1)
    assert said == "HELLO {BRACES}"
    assert 0.1 <= float(seconds) < 1
    assert done.returncode == 7
    assert "100 ms round trip, 100 Mbit/s each way, through a proxy (asked for)" in done.stderr
    assert "not emulated" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_link_stays_up_until_told(far: tuple[str, ...], number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(_command("--rtt=10", "--json", *far), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["kind"] == "proxy"
    assert ready["reason"] == "asked for"
    assert ready["shape"]["rtt_ms"] == 10
    host, port = ready["server"].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"here")
        assert connection.recv(100) == b"HERE"
    process.send_signal(number)
    assert process.wait(20) == code
    process.stdout.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), timeout=10)


def test_far_command_that_fails_is_reported() -> None:
    done = _run("--kind=proxy", f"--far={sys.executable} -c 'raise SystemExit(3)'", "--", "true")
    assert done.returncode == 1
    assert "the far command ended with exit code 3" in done.stderr


def test_far_command_that_never_listens_is_not_waited_for_forever() -> None:
    done = _run("--kind=proxy", "--far=sleep 50", "--patience=0.2", "--port=1", "--", "true")
    assert done.returncode == 1
    assert "nothing listens on port 1 of the far side after 0.2 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rtt=-3"], "round trip of -3 ms"),
        (["--rtt=nan"], "round trip of nan"),
        (["--loss=2"], "loss of 2"),
        (["--port=0"], "--port 0; give 1 to 65535"),
        (["--patience=-1"], "--patience -1"),
        (["--far="], "--far is empty"),
        (["--far='"], "is no command line"),
        (["--", "true"], "pass --far COMMAND"),
        (["--kind=proxy", "--loss=0.1"], "neither lose nor reorder"),
        (["--kind=proxy", "--far=no-such-command"], "cannot run 'no-such-command'"),
    ],
)
def test_wrong_values_are_named(arguments: list[str], words: str) -> None:
    done = _run(*arguments)
    assert words in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
