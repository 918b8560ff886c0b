"""The gateway as an ASGI application: routes, and the layers a request passes.

Observer → SiteGuard → CORS (if sites are allowed) → KeyGuard → routes
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from cutlayer.errors import CutlayerError
from cutlayer.gateway.access import KeyGuard, SiteGuard
from cutlayer.gateway.chat import chat
from cutlayer.gateway.completions import completions
from cutlayer.gateway.metrics import CONTENT_TYPE
from cutlayer.gateway.observe import Observer
from cutlayer.gateway.openapi import description
from cutlayer.gateway.prefill import prefill
from cutlayer.gateway.problems import ApiError, of_cutlayer
from cutlayer.gateway.schema.answers import Model, ModelList, Status
from cutlayer.gateway.service import ClientGoneError
from cutlayer.gateway.tokens import detokenize, tokenize

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from cutlayer.gateway.service import Gateway
    from cutlayer.wire.token_book import TokenBook

_EXPOSED: Final = [
    "x-request-id", "x-cutlayer-cut", "x-cutlayer-defence", "x-cutlayer-ledger", "x-cutlayer-readable", "retry-after",
]  # fmt: skip
_GONE: Final = 499
"""Nobody reads it; for the log, as nginx has it."""
_MESSAGES: Final = {404: "there is no such endpoint here", 405: "this endpoint takes another method"}


def build_app(
    gateway: Gateway,
    *,
    hosts: frozenset[str] | None = None,
    origins: Collection[str] = (),
    keys: TokenBook | None = None,
) -> ASGIApp:
    """Put the layers together.

    Args:
        gateway: what answers.
        hosts: Host headers to accept; None accepts all.
        origins: sites whose pages may use it.
        keys: None lets everybody in.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await gateway.close()

    routes = Starlette(routes=_routes(gateway), exception_handlers=_HANDLERS, lifespan=lifespan)
    app: ASGIApp = KeyGuard(routes, keys)
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return Observer(SiteGuard(app, hosts, origins), gateway)


def _routes(gateway: Gateway) -> list[Route]:
    published = msgspec.json.encode(description(gateway.model))

    async def models(request: Request) -> Response:
        return _json(ModelList([_model(gateway)]))

    async def model(request: Request) -> Response:
        gateway.check_model(request.path_params["id"])
        return _json(_model(gateway))

    async def health(request: Request) -> Response:
        return _json(Status("ok"))

    async def ready(request: Request) -> Response:
        if not await gateway.ready():
            raise ApiError.away("the server that runs the model does not answer")
        return _json(Status("ready"))

    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(request: Request) -> Response:
        return Response(published, media_type="application/json")

    return [
        Route("/v1/chat/completions", partial(chat, gateway), methods=["POST"]),
        Route("/v1/completions", partial(completions, gateway), methods=["POST"]),
        Route("/v1/prefill", partial(prefill, gateway), methods=["POST"]),
        Route("/v1/tokenize", partial(tokenize, gateway), methods=["POST"]),
        Route("/v1/detokenize", partial(detokenize, gateway), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]


def _model(gateway: Gateway) -> Model:
    return Model(id=gateway.model, created=gateway.created, max_model_len=gateway.max_positions)


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error.response()


async def _on_cutlayer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, CutlayerError):
        raise error
    return of_cutlayer(error).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = _MESSAGES.get(error.status_code, "the request was refused")
    response = ApiError(error.status_code, message).response()
    response.headers.update(error.headers or {})  # Allow, with 405
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_GONE)


async def _on_anything(request: Request, error: Exception) -> Response:
    # The exception goes on to the Observer, which logs where it came from.
    return ApiError(500, "an error of this gateway; see its log", "server_error").response()


_HANDLERS: Final[dict[Any, Any]] = {
    ApiError: _on_api_error,
    CutlayerError: _on_cutlayer_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
    ClientGoneError: _on_disconnect,
    Exception: _on_anything,
}
