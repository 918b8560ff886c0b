"""WebSocket transport, both ends, over TLS 1.3 except on loopback.

Compression is off: its ratio would leak content, and hidden states hardly compress.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.proxy import get_proxy
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as ws_connect
from websockets.uri import parse_uri

from cutlayer.errors import ConnectionLostError, InputError, RemoteCode, RemoteError
from cutlayer.wire.frames import SUBPROTOCOL
from cutlayer.wire.handshake import explain
from cutlayer.wire.keep_warm import KeepWarm
from cutlayer.wire.printable import printable
from cutlayer.wire.tcp import congestion_control, dial
from cutlayer.wire.token import authorisation
from cutlayer.wire.transport import UNPROTECTED, PeerSecurity

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.typing import Subprotocol

    from cutlayer.types import Secret

KEEPALIVE_S: Final = 20.0
"""A peer that answers no ping for this long is taken for gone."""

_BUFFERED_MESSAGES: Final = 8
"""Received and not yet asked for; a client has fewer steps under way. Beyond that TCP holds the server back."""
_HTTP_REDIRECTION: Final = 3
_HTTP_UNAUTHORISED: Final = 401
_HTTP_FORBIDDEN: Final = 403


class WebSocketTransport:
    """The client's end.

    Args:
        url: ``wss://host:port`` or, on loopback, ``ws://host:port``.
        context: TLS settings for ``wss``.
        token: bearer token, if the server wants one.
        max_message_bytes: larger messages from the server end the connection.
        open_timeout_s: for connecting, TLS and the upgrade together.
        keepalive_s: ping interval and patience.
        congestion: TCP congestion control, see `set_congestion_control`. Through an HTTP proxy it stays the system's, for
            the long way is the proxy's.
        keep_warm_s: for how long after the last message pings keep the way open for the next; see `KeepWarm`.

    Raises:
        InputError: no such congestion control here.
        ConnectionLostError: nobody answers.
        InsecureError: the server's certificate does not verify.
        RemoteError: the server refused the identity.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext | None,
        token: Secret | None,
        max_message_bytes: int,
        open_timeout_s: float = 10.0,
        keepalive_s: float = KEEPALIVE_S,
        congestion: str | None = None,
        keep_warm_s: float = 0.0,
    ) -> None:
        headers = {"Authorization": authorisation(token)} if token else None
        subprotocol: Subprotocol = SUBPROTOCOL  # type: ignore[assignment]
        deadline = time.monotonic() + open_timeout_s
        try:
            address = parse_uri(url)
            proxied = context is not None and get_proxy(address) is not None
            channel = None if proxied else dial(address.host, address.port, open_timeout_s, congestion)
            self._socket: ClientConnection = ws_connect(
                url,
                sock=channel,
                ssl=context,
                subprotocols=[subprotocol],
                additional_headers=headers,
                compression=None,
                max_size=max_message_bytes,
                max_queue=_BUFFERED_MESSAGES,
                open_timeout=deadline - time.monotonic(),
                ping_interval=keepalive_s,
                ping_timeout=keepalive_s,
                close_timeout=2,
                proxy=True if proxied else None,
                create_connection=_Direct,
                legacy=True,
            )
        except ssl.SSLError as error:
            raise explain(error, url) from None
        except InvalidStatus as error:
            status = error.response.status_code
            if status in {_HTTP_UNAUTHORISED, _HTTP_FORBIDDEN}:
                raise RemoteError(
                    RemoteCode.UNAUTHORISED, "no valid certificate or token; see --keys and --token"
                ) from None
            raise ConnectionLostError(f"{url} answered HTTP {status} instead of a WebSocket") from None
        except InvalidURI as error:
            raise InputError(f"{url!r} is no server URL: {error}") from None
        except (InvalidMessage, ConnectionClosed, EOFError) as error:
            # Under TLS 1.3 a server refuses a client only after the client's handshake is done; websockets drops the alert.
            hint = (
                "; if it wants a client certificate, pass --keys DIR/client" if context else "; does it speak wss://?"
            )
            raise ConnectionLostError(f"{url} ended the connection before answering{hint}") from error
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise ConnectionLostError(
                f"cannot connect to {url}: {printable(str(error)) or type(error).__name__}"
            ) from error
        _limit_sending(self._socket.socket, keepalive_s)
        self._warmth = KeepWarm(self._socket.ping, keep_warm_s)
        if self._socket.subprotocol != SUBPROTOCOL:
            self._socket.close()
            raise ConnectionLostError(f"{url} does not speak {SUBPROTOCOL}; is it a cutlayer server of this version?")

    def send(self, data: bytes) -> None:
        """See `Transport.send`."""
        self._warmth.used()
        try:
            self._socket.send(data)
        except (ConnectionClosed, OSError) as error:
            raise ConnectionLostError(f"connection lost while sending: {printable(str(error))}") from error

    def recv(self, timeout_s: float | None = None) -> bytes:
        """See `Transport.recv`."""
        try:
            return self._socket.recv(timeout=timeout_s, decode=False)
        except TimeoutError:
            raise ConnectionLostError(f"no answer within {timeout_s} s") from None
        except (ConnectionClosed, OSError) as error:
            # Printable: the server gives its reason in its own words.
            raise ConnectionLostError(f"connection lost while waiting: {printable(str(error))}") from error

    def close(self) -> None:
        """See `Transport.close`."""
        self._warmth.end()
        self._socket.close()

    def break_connection(self) -> None:
        """Cut the connection under the protocol's feet, as a pulled cable would. For tests."""
        with contextlib.suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)

    def security(self) -> PeerSecurity:
        """Protocol, cipher and certificate of the server."""
        return _security(self._socket.socket)

    def congestion_control(self) -> str:
        """Of what this side sends; the server's side has its own."""
        return congestion_control(self._socket.socket)


class WebSocketAcceptor:
    """The server's end of one connection, made by `websockets` itself."""

    def __init__(self, connection: ServerConnection, identity: str) -> None:
        self.identity = identity
        self._connection = connection

    async def send(self, data: bytes) -> None:
        """See `Acceptor.send`."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise ConnectionLostError(f"connection lost while sending: {error}") from error

    async def recv(self) -> bytes:
        """See `Acceptor.recv`."""
        try:
            message = await self._connection.recv(decode=False)
        except ConnectionClosed as error:
            raise ConnectionLostError(f"connection lost while waiting: {error}") from error
        return bytes(message)

    async def close(self) -> None:
        """See `Acceptor.close`."""
        await self._connection.close()


class _Direct(ClientConnection):
    """A connection that follows no redirect: the URL was checked, and where the server points to was not."""

    def handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().handshake(*args, **kwargs)
        except InvalidStatus as error:
            status = error.response.status_code
            if status // 100 == _HTTP_REDIRECTION:
                # Not as InvalidStatus, which `ws_connect` would take as an invitation to go there
                raise ConnectionLostError(
                    f"the server redirects (HTTP {status}), which cutlayer never follows"
                ) from None
            raise


def _limit_sending(channel: object, seconds: float) -> None:
    """End a send during which the peer takes nothing for so long. Pings cannot notice: they queue behind it."""
    if isinstance(channel, socket.socket) and hasattr(socket, "SO_SNDTIMEO"):
        whole, fraction = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
        with contextlib.suppress(OSError):  # the peer has ended it already, which the first use tells better
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _security(channel: object) -> PeerSecurity:
    if not isinstance(channel, ssl.SSLSocket):
        return UNPROTECTED
    encoded = channel.getpeercert(binary_form=True) or b""
    subject = dict(pair for group in (channel.getpeercert() or {}).get("subject", ()) for pair in group)  # type: ignore[misc]
    cipher = channel.cipher()
    return PeerSecurity(
        protocol=channel.version() or "none",
        cipher=cipher[0] if cipher else "",
        peer=str(subject.get("commonName", "")),
        fingerprint=hashlib.sha256(encoded).hexdigest() if encoded else "",
    )
