"""Who may talk to the gateway: programs on this machine, and whoever has a key; no web page that merely knows the address.

Any page open in a browser can send requests to 127.0.0.1, and one whose name is made to resolve to it (DNS rebinding) could
even read the answers. So on loopback a request must name this server in its Host header, and one that says which site it comes
from is refused unless that site was allowed. Beyond loopback there are API keys and TLS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers

from cutlayer.errors import InsecureError
from cutlayer.gateway.problems import ApiError
from cutlayer.wire.policy import is_loopback

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from cutlayer.wire.token_book import TokenBook

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/openapi.json"})
"""Need no key: they say nothing about anybody's use."""


def listen_policy(host: str, tls: bool, keys: bool) -> None:
    """Refuse to listen where strangers could read prompts or ask questions.

    Raises:
        InsecureError: `host` is not loopback, and TLS or API keys are missing.
    """
    if is_loopback(host) or (tls and keys):
        return
    missing = " and ".join(
        [*(["TLS (--tls-cert, --tls-key)"] if not tls else []), *(["API keys (--api-keys)"] if not keys else [])]
    )
    raise InsecureError(
        f"prompts and answers travel in the clear between clients and this gateway; listening on {host!r} needs {missing}. "
        "Or listen on 127.0.0.1"
    )


def names_of(host: str, port: int, more: Collection[str] = ()) -> frozenset[str] | None:
    """Host headers under which a gateway may be addressed; None for any.

    Args:
        host: where it listens.
        port: the same.
        more: further names without port, e.g. of a proxy on this machine.
    """
    if not is_loopback(host) and not more:
        return None  # keys and TLS decide; its names are not known here
    hosts = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower(), *map(str.lower, more)}
    ports = {f"{name}:{port}" for name in hosts}
    return frozenset(ports | hosts) if port in (80, 443) or more else frozenset(ports)


class SiteGuard:
    """Refuses requests that a web page of another site caused.

    Args:
        app: what is guarded.
        hosts: see `names_of`.
        origins: sites whose pages may use it, e.g. ``https://chat.example``.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, origins: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", "").lower(), headers.get("origin")
            if self._hosts is not None and host not in self._hosts:
                error = ApiError(421, "this gateway does not go by that name; see --allow-host", code="unknown_host")
                await error.response()(scope, receive, send)
                return
            if origin is not None and origin.lower() not in self._origins:
                error = ApiError(
                    403, "web pages of other sites may not use this gateway; see --allow-origin", code="foreign_origin"
                )
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class KeyGuard:
    """Lets in who has a key, and notes whose it is.

    Args:
        app: what is guarded.
        keys: the known ones; None lets everybody in.
    """

    def __init__(self, app: ASGIApp, keys: TokenBook | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and self._keys is not None and scope["path"] not in OPEN_PATHS:
            owner = self._keys.identify(Headers(scope=scope).get("authorization"))
            if owner is None:
                error = ApiError(
                    401,
                    "give a valid API key: 'Authorization: Bearer KEY'",
                    "authentication_error",
                    code="invalid_api_key",
                )
                await error.response()(scope, receive, send)
                return
            scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, receive, send)
