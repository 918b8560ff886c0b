"""Listen on a socket: WebSocket upgrade, identity, health, clean shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import time
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve

from cutlayer.server.flow import PacedConnection
from cutlayer.wire import frames
from cutlayer.wire.tcp import congestion_control, set_congestion_control
from cutlayer.wire.tls import TokenBook, listen_policy
from cutlayer.wire.websocket import KEEPALIVE_S, WebSocketAcceptor

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.http11 import Request, Response

    from cutlayer.server.service import Service

log: Final = structlog.get_logger("cutlayer.server")

_BUFFERED_MESSAGES: Final = 2
"""Received and not yet answered messages per connection; beyond that TCP holds the client back."""
_CONNECTIONS_PER_SESSION: Final = 2
"""The one that is used, and one that resumes before the server has noticed that the old one is dead."""
_OPEN_S: Final = 10.0
"""For the TLS handshake, and again for the upgrade request: who drips either is cut off."""
_CLOSE_S: Final = 2.0
"""For a peer to say goodbye, and for handlers to end once told to."""
_WIDEST_VALUE_BYTES: Final = 4
_QUIET_S: Final = 2.0
"""A session without a step for so long is between two answers."""
_EXPIRY_CHECKS_PER_IDLE_TIME: Final = 4


async def listen(
    service: Service,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    tokens: TokenBook | None = None,
    drain_s: float = 0.0,
    congestion: str | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let answers in progress finish; a second signal ends at once.

    Args:
        service: what to serve.
        host: address to listen on.
        port: 0 picks a free one.
        tls: without it, only loopback is allowed.
        tokens: of which every client must present one.
        drain_s: how long answers in progress may take to finish.
        congestion: TCP congestion control of what is sent to clients, see `set_congestion_control`.
        ready: called with the port once connections are accepted.

    Raises:
        InsecureError: `host` is not loopback and clients would be unencrypted or unauthenticated.
        InputError: no such congestion control here.
        OSError: the address cannot be bound.
    """
    mutual = tls is not None and tls.verify_mode is ssl.CERT_REQUIRED
    listen_policy(host, tls=tls is not None, authenticated=mutual or tokens is not None)
    stopping, stopped = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (stopped if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    connected: Counter[str] = Counter()
    limits = service.table.limits

    async def accept(connection: ServerConnection) -> None:
        identity = _identity(connection, tokens)
        connected[identity] += 1
        try:
            await service.serve(WebSocketAcceptor(connection, identity))
        finally:
            connected.subtract([identity])
            if not connected[identity]:
                del connected[identity]

    def gate(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/health":
            body = {
                "status": "draining" if service.draining else "ok",
                "sessions": len(service.table),
                # Only when nobody is here: it grows with every 32 tokens, and would let one tenant watch another's answers.
                "cache_bytes": None if len(service.table) else service.engine.cache_bytes(),
                "model": service.info.model,
                "cut": str(service.info.cut),
            }
            status = HTTPStatus.SERVICE_UNAVAILABLE if service.draining else HTTPStatus.OK
            return connection.respond(status, json.dumps(body) + "\n")
        if tokens is not None and tokens.identify(request.headers.get("Authorization")) is None:
            log.warning("unauthorised", peer=_address(connection))
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a bearer token is required\n")
        theirs, everybodys = connected[_identity(connection, tokens)], connected.total()
        if (
            everybodys >= _CONNECTIONS_PER_SESSION * limits.sessions
            or 0 < _CONNECTIONS_PER_SESSION * limits.sessions_per_owner <= theirs
        ):
            log.warning("too_many_connections", peer=_address(connection), connections=everybodys, theirs=theirs)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    row = service.info.hidden_size * _WIDEST_VALUE_BYTES
    async with serve(
        accept,
        host,
        port,
        ssl=tls,
        subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
        origins=[None],  # web pages have one, and may connect to loopback; clients have none
        process_request=gate,
        create_connection=PacedConnection,
        compression=None,
        server_header=None,
        max_size=3 + frames.MAX_HEADER_BYTES + limits.step_positions * row,
        max_queue=_BUFFERED_MESSAGES,
        open_timeout=_OPEN_S,
        close_timeout=_CLOSE_S,
        ping_interval=KEEPALIVE_S,
        ping_timeout=KEEPALIVE_S,
    ) as server:
        listeners = tuple(server.sockets)
        for listener in listeners:
            set_congestion_control(listener, congestion)  # accepted sockets inherit it
        bound = listeners[0].getsockname()[1]
        log.info(
            "listening",
            host=host,
            port=bound,
            tls=tls is not None,
            mutual_tls=mutual,
            tokens=len(tokens or ()),
            congestion=congestion_control(listeners[0]),
        )
        expiry = asyncio.create_task(_expire(service, limits.idle_s))
        if ready is not None:
            ready(bound)
        await stopping.wait()
        service.draining = True
        log.info("stopping", sessions=len(service.table))
        await _drain(service, drain_s, stopped)
        expiry.cancel()
        server.close()
        await _leave(server)
    service.engine.close()


async def _drain(service: Service, drain_s: float, stopped: asyncio.Event) -> None:
    """Wait until no session has made a step for a while."""
    deadline = time.monotonic() + drain_s
    while service.table.busy(_QUIET_S) and time.monotonic() < deadline and not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _QUIET_S / 10)


async def _leave(server: Server) -> None:
    """End whatever does not end by itself: a step that waits for its rate, a peer that drips its request."""
    if server.handler_tasks:
        await asyncio.wait(set(server.handler_tasks), timeout=_CLOSE_S)
    for task in list(server.handler_tasks):
        task.cancel()


async def _expire(service: Service, idle_s: float) -> None:
    while True:
        await asyncio.sleep(idle_s / _EXPIRY_CHECKS_PER_IDLE_TIME)
        dropped = service.table.expire()
        if dropped:
            log.info("sessions_expired", count=dropped, sessions=len(service.table))


def _identity(connection: ServerConnection, tokens: TokenBook | None) -> str:
    """Who a client proved to be. Only that identity may resume its sessions, and quotas are by identity."""
    channel = connection.transport.get_extra_info("ssl_object")
    certificate = channel.getpeercert() if channel is not None else None
    if certificate:
        # The serial too: a reissued certificate of the same name is another key.
        subject = dict(pair for group in certificate.get("subject", ()) for pair in group)
        return f"{subject.get('commonName', '')}#{certificate.get('serialNumber', '')}"
    if tokens is not None and connection.request is not None:
        return f"token:{tokens.identify(connection.request.headers.get('Authorization'))}"
    return "loopback"


def _address(connection: ServerConnection) -> str:
    remote = connection.remote_address
    return str(remote[0]) if remote else "unknown"
