"""In front of a tiny model: the page, served on loopback by this process, and OpenAI's interface, called directly or served."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shutil
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from cutlayer.audit.held import Held
from cutlayer.audit.watch import Watcher
from cutlayer.client.connect import Client, Options
from cutlayer.client.remote import Patience
from cutlayer.gateway.access import names_of
from cutlayer.gateway.app import build_app
from cutlayer.gateway.listen import DrainingServer
from cutlayer.gateway.logs import request_logger
from cutlayer.gateway.service import Gateway, Limits
from cutlayer.gateway.split import split
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


PORT = 8411


class Door:
    """A gateway to a tiny model, its log, and what is behind it."""

    def __init__(self, gateway: Gateway, line: Line, log: io.StringIO, **guards: Any) -> None:
        self.gateway = gateway
        self.line = line
        self.model = gateway.model
        self._log = log
        self._guards = guards
        self.http: TestClient = None  # type: ignore[assignment]

    def app(self, port: int = PORT) -> Any:
        return build_app(self.gateway, **{"hosts": names_of("127.0.0.1", port), **self._guards})

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.http.post(path, json=body, headers=headers)

    def chat(self, content: str = "hello", **fields: Any) -> Any:
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        return self.post("/v1/chat/completions", {**body, **fields})

    def complete(self, prompt: Any = "hello", **fields: Any) -> Any:
        return self.post("/v1/completions", {"model": self.model, "prompt": prompt, "max_tokens": 8, **fields})

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    @contextmanager
    def served(self) -> Iterator[tuple[str, DrainingServer]]:
        """On a socket, by a server whose `should_exit` ends it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            started = threading.Event()
            config = uvicorn.Config(self.app(port), log_config=None, access_log=False, ws="none")
            http_server = DrainingServer(config, self.gateway, started.set)
            thread = threading.Thread(target=lambda: asyncio.run(http_server.serve([listener])))
            thread.start()
            try:
                assert started.wait(30)
                yield f"http://127.0.0.1:{port}", http_server
            finally:
                http_server.should_exit = True
                thread.join(60)
                assert not thread.is_alive()


@pytest.fixture(scope="module")
def tiny_server(tiny_with_text: Callable[[str], Path]) -> Iterator[LocalServer]:
    with LocalServer(build_service(tiny_with_text("llama"), "tiny", "2:-2", "float32")) as server:
        yield server


@pytest.fixture
def open_door(tiny_server: LocalServer, tiny_with_text: Callable[[str], Path]) -> Iterator[Callable[..., Door]]:
    """Opens gateways with the given limits and guards; `served=True` leaves it to `Door.served` to run the application."""
    usual = tiny_with_text("llama")
    with ExitStack() as stack:

        def make(
            *, served: bool = False, patience: Patience | None = None, directory: Path = usual, **given: Any
        ) -> Door:
            limits = {name: given.pop(name) for name in list(given) if name in Limits.__struct_fields__}
            line, log = Line(tiny_server), io.StringIO()
            options = Options(model=str(directory), patience=patience or Patience(recover_s=1))
            gateway = Gateway(split(Client(line, options)), Limits(**limits), "tiny", request_logger(log))
            door = Door(gateway, line, log, **given)
            if not served:
                door.http = stack.enter_context(TestClient(door.app(), base_url=f"http://127.0.0.1:{PORT}"))
            return door

        yield make


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
