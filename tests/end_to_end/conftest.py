"""A real server process under mutual TLS on loopback, shared by a module's tests."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.cli.server_process import ServerProcess
from cutlayer.wire.tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2.name) as process:
        yield process


@pytest.fixture
def health_of() -> Callable[[ServerProcess], dict[str, Any]]:
    return _health


def _health(server: ServerProcess) -> dict[str, Any]:
    """What /health answers."""
    context: ssl.SSLContext = client_context(server.client_keys)
    with urllib.request.urlopen(server.url.replace("wss", "https") + "/health", context=context) as answer:
        return dict(json.load(answer))


@pytest.fixture
def cutlayer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""
    return _run


def _run(*arguments: str, text: str | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cutlayer", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture
def at(server: ServerProcess) -> tuple[str, ...]:
    """Arguments that lead a client verb to the server."""
    return ("--server", server.url, "--keys", str(server.client_keys))
