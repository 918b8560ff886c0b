"""The page, served on loopback by this process, in front of a tiny model."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from cutlayer.audit.held import Held
from cutlayer.audit.watch import Watcher
from cutlayer.client.connect import Client, Options
from cutlayer.gateway.watch_page import WatchPage
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "t" * 32


class Line:
    """Connections to the model's server, which can be held up."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._open = threading.Event()
        self._open.set()

    def __call__(self) -> Any:
        inner = self._server.connect()
        real = inner.recv

        def recv(timeout_s: float | None = None) -> bytes:
            data = real(timeout_s)
            self._open.wait(60)
            return data

        inner.recv = recv  # type: ignore[method-assign]
        return inner

    def hold(self) -> None:
        self._open.clear()

    def proceed(self) -> None:
        self._open.set()


class Site:
    """The page's address, and what is behind it."""

    def __init__(self, client: Client, port: int, line: Line) -> None:
        self.client = client
        self.port = port
        self.line = line
        self.url = f"http://127.0.0.1:{port}/{TOKEN}/"

    def request(
        self, method: str = "GET", path: str = f"/{TOKEN}/", body: str | bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and body; header names are given with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def ask(self, prompt: str) -> tuple[int, str]:
        """What the page would send."""
        body = json.dumps({"prompt": prompt})
        status, _, content = self.request("POST", f"/{TOKEN}/ask", body, Content_Type="application/json")
        return status, content


@pytest.fixture(scope="module")
def site(tiny_with_text: Callable[[str], Path]) -> Iterator[Site]:
    directory = tiny_with_text("llama")
    with (
        LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        line = Line(server)
        held = Held(line)
        with Client(held, Options(model=str(directory))) as client, Watcher(client, held) as watcher:
            port = listener.getsockname()[1]
            app = WatchPage(client, watcher, max_tokens=24).app(
                Secret(TOKEN.encode()), frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
            )
            http_server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none"))
            thread = threading.Thread(target=http_server.run, kwargs={"sockets": [listener]})
            thread.start()
            yield Site(client, port, line)
            http_server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Any]:
    """A real one. Ends before the site: Playwright occupies this thread's event loop, which the local server needs to stop."""
    api = pytest.importorskip("playwright.sync_api", reason="the page's browser tests need playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("the page's browser tests need Chromium (Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()
