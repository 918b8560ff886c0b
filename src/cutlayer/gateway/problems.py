"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with the status code its clients expect.

Messages say what was wrong and what to do, and never quote what was sent: they end up in logs of programs and proxies.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

from cutlayer.errors import (
    ConnectionLostError,
    CutlayerError,
    InputError,
    RemoteCode,
    RemoteError,
    UpstreamError,
    UpstreamTimeoutError,
)

RETRY_S: Final = 5
"""After which a client may try again when the server is away or full."""

_BUSY: Final = frozenset({RemoteCode.LIMIT, RemoteCode.SHUTTING_DOWN})


class Problem(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    """``invalid_request_error``, ``authentication_error``, ``rate_limit_error`` or ``server_error``."""
    param: str | None
    """The field of the request."""
    code: str | None


class ProblemAnswer(msgspec.Struct):
    """The body of every answer that is an error."""

    error: Problem


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for people.
        kind: OpenAI's ``type``.
        param: the field at fault.
        code: machine-readable reason.
        retry_s: seconds for a Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(message, kind, param, code)
        self.retry_s = retry_s

    @classmethod
    def bad(cls, message: str, param: str | None = None, code: str | None = None) -> ApiError:
        """Status 400."""
        return cls(400, message, param=param, code=code)

    @classmethod
    def conversation(cls) -> ApiError:
        """Status 400: the chat template refuses it. Not in the template's own words, which may quote it."""
        return cls.bad(
            "the model's chat template refuses this conversation; many want an optional system message first, then user and "
            "assistant in turn",
            "messages",
        )

    @classmethod
    def away(cls, message: str, retry_s: int = RETRY_S) -> ApiError:
        """Status 503: this gateway is well, what it needs is not."""
        return cls(503, message, "server_error", code="server_unavailable", retry_s=retry_s)

    def body(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(ProblemAnswer(self.problem))

    def response(self) -> Response:
        """As an answer."""
        headers = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.body(), self.status, headers, media_type="application/json")


def of_cutlayer(error: CutlayerError) -> ApiError:
    """What an error of ours is to a client of the gateway."""
    if isinstance(error, InputError):
        return ApiError.bad(str(error))
    if isinstance(error, ConnectionLostError):
        return ApiError.away("the server that runs the model does not answer; try again later")
    if isinstance(error, RemoteError) and error.code in _BUSY:
        return ApiError.away("the server that runs the model takes no more requests now; try again later")
    if isinstance(error, UpstreamTimeoutError):
        return ApiError(504, str(error), "server_error", code="server_timeout")
    if isinstance(error, UpstreamError):
        return ApiError(502, str(error), "server_error", code="server_failed")
    # A peer's own words stay out: nobody here has checked them.
    return ApiError(
        502,
        f"the server that runs the model failed ({type(error).__name__}); see this gateway's log",
        "server_error",
        code="server_failed",
    )
