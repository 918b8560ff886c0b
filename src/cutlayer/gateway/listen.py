"""Listen on a socket until SIGINT or SIGTERM, then finish or stop what is in progress, within a bound."""

from __future__ import annotations

import asyncio
import signal
import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec
import uvicorn

from cutlayer.gateway.access import listen_policy, names_of
from cutlayer.gateway.app import build_app
from cutlayer.gateway.listener import authority, bound
from cutlayer.wire.tls import load_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator
    from pathlib import Path

    from cutlayer.gateway.service import Gateway
    from cutlayer.wire.token_book import TokenBook

_AFTER_DRAIN_S: Final = 5
"""For the last bytes of answers, after those in progress were stopped."""
_CONNECTIONS: Final = 512
"""At a time; more are answered 503."""
_HEADER_BYTES: Final = 32 << 10


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, and for whom."""

    host: str = "127.0.0.1"
    port: int = 8411
    """0 takes a free one."""
    names: tuple[str, ...] = ()
    """Further Host headers to accept."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may use the gateway."""


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS settings: version 1.2 at least, for the clients of others.

    Raises:
        InputError: a file is missing, unreadable, expired, or the two do not belong together.
        InsecureError: others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, certificate, key)
    return context


def serve(
    gateway: Gateway,
    address: Address,
    *,
    keys: TokenBook | None = None,
    tls: ssl.SSLContext | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until interrupted.

    Args:
        gateway: what to serve; closed at the end.
        address: where.
        keys: None lets everybody in, on loopback.
        tls: without it, only loopback is allowed.
        ready: called with the base URL once requests are accepted.

    Raises:
        InsecureError: see `cutlayer.gateway.access.listen_policy`.
        InputError: the address cannot be bound.
    """
    listen_policy(address.host, tls is not None, keys is not None)
    with bound(address.host, address.port) as listener:
        port = listener.getsockname()[1]
        url = f"{'https' if tls else 'http'}://{authority(address.host, port)}/v1"
        hosts = names_of(address.host, port, address.names)
        config = uvicorn.Config(
            build_app(gateway, hosts=hosts, origins=address.origins, keys=keys),
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http="h11",
            h11_max_incomplete_event_size=_HEADER_BYTES,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_AFTER_DRAIN_S,
            ssl_context_factory=None if tls is None else (lambda config, default: tls),
        )
        server = DrainingServer(config, gateway, lambda: ready(url))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """Lets answers in progress finish before connections are closed.

    Args:
        config: of the HTTP server.
        gateway: what is drained.
        ready: called once requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, gateway: Gateway, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then `ready`."""
        await super().startup(sockets)
        if self.started:
            self._gateway.log.info("listening", sessions=self._gateway.limits.sessions)
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then as uvicorn's."""
        self._gateway.log.info("stopping", in_use=self._gateway.pool.in_use)
        await self._gateway.drain()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """End on SIGINT and SIGTERM, with exit code 0. (uvicorn's own would raise the signal again after the shutdown.)"""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        with suppress(ValueError, RuntimeError):  # not the main thread: whoever started it ends it
            for number in signals:
                loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            with suppress(ValueError, RuntimeError):
                for number in signals:
                    loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # the second time: now
        self.should_exit = True
