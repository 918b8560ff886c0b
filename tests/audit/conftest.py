"""A tiny split model in this process, and the doctor looking at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.audit.doctor import diagnose
from cutlayer.client.connect import Options
from cutlayer.client.remote import Patience
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.audit.finding import Diagnosis, Finding
    from cutlayer.server.service import Service

HERE = "ws://127.0.0.1:8410"


class Bench:
    """Runs the doctor against in-process servers of one tiny model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._servers: list[LocalServer] = []

    def server(self, cut: str = "2:-2", change: Callable[[Service], None] | None = None) -> LocalServer:
        """A running server; `change` may tamper with it first."""
        service = build_service(self.directory, "tiny", cut, "float32")
        if change is not None:
            change(service)
        server = LocalServer(service)
        server.__enter__()
        self._servers.append(server)
        return server

    def options(self, **settings: Any) -> Options:
        """For this model; a server that stays away is given up soon."""
        return Options(model=str(self.directory), patience=Patience(step_s=20, recover_s=0.3), **settings)

    def examine(
        self,
        cut: str = "2:-2",
        change: Callable[[Service], None] | None = None,
        server: str = HERE,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Diagnosis:
        """One run of the doctor."""
        running = self.server(cut, change)
        settings.setdefault("max_tokens", 6)
        return diagnose(running.connect, server, options=self.options(**(options or {})), **settings)

    def close(self) -> None:
        for server in self._servers:
            server.__exit__(None, None, None)


@pytest.fixture
def bench(tiny_with_text: Callable[[str], Path]) -> Iterator[Bench]:
    """A bench for the tiny llama."""
    made = Bench(tiny_with_text("llama"))
    yield made
    made.close()


@pytest.fixture
def finding() -> Callable[[Diagnosis, str], Finding]:
    """The finding of a name."""

    def find(diagnosis: Diagnosis, name: str) -> Finding:
        return next(found for found in diagnosis.findings if found.name == name)

    return find
