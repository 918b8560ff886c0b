"""The outermost layer: request ids, headers of every answer, and one log line and one count per request.

What is logged of a request is chosen here, field by field. Paths are logged as the endpoint they belong to: what a client writes
into one is its own affair.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders

from cutlayer.gateway.logs import place_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cutlayer.gateway.service import Gateway

_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ENDPOINTS: Final = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/prefill", "/v1/models", "/v1/tokenize", "/v1/detokenize",
        "/health", "/ready", "/metrics", "/openapi.json",
    }
)  # fmt: skip
_QUIET: Final = frozenset({"/health", "/ready", "/metrics"})
"""Not logged: something asks every few seconds."""


class Observer:
    """Wraps the application.

    Args:
        app: what is observed.
        gateway: whose log, counters and headers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrival = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _GIVEN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["arrival"] = arrival
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(self._gateway.headers)
                headers["x-request-id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:  # noqa: BLE001, RUF100 - the routes have answered it
            # Not passed on: the HTTP server would log the exception with its message, which may quote a prompt.
            self._gateway.log.error("failed", request_id=request_id, **place_of(error))
        finally:
            self._account(scope, request_id, status, time.monotonic() - arrival)

    def _account(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path, state = scope["path"], scope["state"]
        endpoint = path if path in _ENDPOINTS else "/v1/models/{id}" if path.startswith("/v1/models/") else "other"
        self._gateway.metrics.answered(endpoint, status, seconds)
        if endpoint in _QUIET:
            return
        self._gateway.log.info(
            "answered",
            request_id=request_id,
            endpoint=endpoint,
            status=status,
            key=state.get("owner"),
            seconds=round(seconds, 4),
            **state.get("facts", {}),
        )
