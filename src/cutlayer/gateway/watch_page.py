"""A page for one's own browser: ask on the left, and see on the right what the server reads of it.

    page = WatchPage(client, watcher)
    serve_page(page, "127.0.0.1", 0, ready=print)

One question at a time, each a conversation of its own. The page is one file without remote parts; prompt, answer and view
travel between this process and the browser over loopback, are kept in memory, and are logged nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import threading
from contextlib import suppress
from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cutlayer.audit.measured import statement_for
from cutlayer.errors import CutlayerError, InsecureError
from cutlayer.gateway.guard import LoopbackGuard
from cutlayer.gateway.listener import authority, bound
from cutlayer.types import Secret

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from cutlayer.audit.view import View
    from cutlayer.audit.watch import Watcher
    from cutlayer.client.connect import Client
    from cutlayer.client.sampling import Sampling

LONGEST_PROMPT: Final = 50_000
_LONGEST_BODY: Final = 8 * LONGEST_PROMPT
"""Bytes: a character may be escaped."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_LEAVE_S: Final = 2
_BUSY: Final = "another question is being answered; stop it first, or wait"
_PAGE: Final = files("cutlayer.gateway").joinpath("static/watch.html").read_text(encoding="utf-8")


class _Ask(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_PROMPT)]


class _Refused(msgspec.Struct):
    message: str


class WatchPage:
    """The page's few requests.

    Args:
        client: connected through the watcher's `Held`.
        watcher: of that client.
        max_tokens: an answer's longest length.
        sampling: how tokens are chosen; None is greedy.
    """

    def __init__(
        self, client: Client, watcher: Watcher, max_tokens: int = 256, sampling: Sampling | None = None
    ) -> None:
        self._client = client
        self._watcher = watcher
        self._asking: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling}
        self._running = False
        self._worker: asyncio.Future[None] | None = None

    def app(self, token: Secret, hosts: frozenset[str]) -> LoopbackGuard:
        """As an ASGI application.

        Args:
            token: first component of every path.
            hosts: names under which it may be addressed, ``host:port``.
        """
        routes = [
            Route("/", self._page),
            Route("/setting", self._setting),
            Route("/ask", self._ask, methods=["POST"]),
        ]
        return LoopbackGuard(Starlette(routes=routes), token, hosts, {"Content-Security-Policy": _policy(_PAGE)})

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def _setting(self, request: Request) -> Response:
        client = self._client
        return _json(
            {
                "model": client.directory.name,
                "cut": f"{client.cut} of {client.cut.layers} layers",
                "defence": client.defence.describe(),
                "attack": self._watcher.attack,
                "measured": statement_for(client),
                "longest_prompt": LONGEST_PROMPT,
            }
        )

    async def _ask(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("application/json"):
            return _json(_Refused("send application/json"), 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_BODY:
                return _json(_Refused(f"a question has at most {LONGEST_PROMPT} characters"), 413)
        try:
            asked = msgspec.json.decode(body, type=_Ask)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # Not msgspec's own words: they may quote the prompt.
            return _json(_Refused(f"a question has between 1 and {LONGEST_PROMPT} characters"), 400)
        if self._running:
            return _json(_Refused(_BUSY), 409)
        return EventSourceResponse(self._events(asked.prompt), sep="\n")

    async def _events(self, prompt: str) -> AsyncIterator[dict[str, str]]:
        """Pieces of the answer and views, until the final view; leaving early cancels."""
        if self._running:  # asked at the same moment
            yield _event("problem", _Refused(_BUSY))
            return
        self._running = True
        cancelled = threading.Event()
        try:
            if self._worker is not None:
                await asyncio.wait([self._worker])  # after a cancellation it finishes the step it is in
            loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]]()

            def emit(kind: str, content: Any) -> None:
                with suppress(RuntimeError):  # a view that comes when the loop has been closed is of no use to anybody
                    loop.call_soon_threadsafe(queue.put_nowait, (kind, content))

            self._worker = asyncio.ensure_future(asyncio.to_thread(self._answer, prompt, emit, cancelled))
            ended = False
            while not ended:
                kind, content = await queue.get()
                yield _event(kind, content)
                ended = kind == "problem" or (kind == "view" and content["final"])
        finally:
            cancelled.set()
            self._running = False

    def _answer(self, prompt: str, emit: Callable[[str, Any], None], cancelled: threading.Event) -> None:
        """Runs in a thread of its own, because the model's outer layers block."""
        try:
            generation = self._watcher.ask(prompt, on_view=lambda view: emit("view", _shown(view)), **self._asking)
            for piece in generation:
                if cancelled.is_set():
                    generation.close()
                    break
                emit("piece", {"text": piece.text})
            emit("answered", {"finish_reason": generation.result().finish_reason})
        except CutlayerError as error:
            emit("problem", _Refused(str(error)))
        finally:
            self._watcher.finish()


def serve_page(page: WatchPage, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        page: what to serve.
        host: ``127.0.0.1``, ``localhost`` or ``::1``.
        port: 0 takes a free one.
        ready: called with the address, which is a secret: it is all it takes to ask questions here.

    Raises:
        InsecureError: `host` is not this machine.
        InputError: the port is taken.
    """
    if host not in _LOOPBACK:
        raise InsecureError(
            f"this page shows prompts and is served to this machine only, not on {host!r}; choose one of {', '.join(_LOOPBACK)}"
        )
    # "localhost" may be either family's; the page goes by both names, on the older one.
    with bound("127.0.0.1" if host == "localhost" else host, port) as listener:
        number = listener.getsockname()[1]
        own = authority(host, number)
        token = secrets.token_urlsafe(24)
        config = uvicorn.Config(
            page.app(Secret(token.encode()), frozenset({own, f"localhost:{number}"})),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_LEAVE_S,
        )
        server = _Server(config, partial(ready, f"http://{own}/{token}/"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _shown(view: View) -> dict[str, Any]:
    return {
        "tokens": msgspec.to_builtins(view.tokens),
        "prompt": view.share("prompt"),
        "answer": view.share("answer"),
        "final": view.final,
        "problem": view.problem,
    }


def _event(kind: str, content: Any) -> dict[str, str]:
    return {"event": kind, "data": msgspec.json.encode(content).decode()}


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _policy(page: str) -> str:
    """Content-Security-Policy: nothing runs or styles but what is in the file, nothing is loaded, nobody frames it."""

    def digest(tag: str) -> str:
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
