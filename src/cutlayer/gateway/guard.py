"""Who may talk to a page on loopback: a browser that was given its address, and no web site that guesses it.

Any page open in a browser can send requests to 127.0.0.1, and one whose name is made to resolve to it (DNS rebinding) could
even read the answers. So a request must name this server in its Host header, come from this page if it says where it comes
from, and know the random token in the path.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cutlayer.types import Secret


class LoopbackGuard:
    """Refuses what does not come from this page, and marks all answers as private.

    Args:
        app: what is guarded; sees paths without the token.
        token: first component of every path.
        hosts: names under which this server may be addressed, ``host:port``.
        headers: put on every answer.
    """

    def __init__(self, app: ASGIApp, token: Secret, hosts: frozenset[str], headers: Mapping[str, str]) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._headers = {
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",  # the address holds the token
            "X-Content-Type-Options": "nosniff",
            **headers,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if headers.get("host", "").lower() not in self._hosts:
            response = PlainTextResponse("this server does not go by that name\n", 421)
        elif origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}:
            response = PlainTextResponse("requests from other sites are refused\n", 403)
        elif (inner := self._without_token(scope["path"])) is None:
            response = PlainTextResponse("not found; open the whole address that was printed\n", 404)
        else:
            await self._app({**scope, "path": inner, "raw_path": inner.encode()}, receive, send_private)
            return
        await response(scope, receive, send_private)

    def _without_token(self, path: str) -> str | None:
        token, _, rest = path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self._token.reveal())
        return f"/{rest}" if known else None
