"""What the protocol needs of a network: ordered, reliable, bounded messages.

The client's side is synchronous (its own work, the model's outer layers, is blocking anyway); the server's side is
asynchronous (it waits for many clients). `memory` and `websocket` implement both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class PeerSecurity(NamedTuple):
    """How a connection is protected, as seen from this side."""

    protocol: str
    """``"TLSv1.3"``, or ``"none"``."""
    cipher: str
    peer: str
    """Subject of the peer's certificate, or ``""``."""
    fingerprint: str
    """SHA-256 of the peer's certificate, hex, or ``""``."""


UNPROTECTED = PeerSecurity("none", "", "", "")


class Transport(Protocol):
    """A client's connection to a server."""

    def send(self, data: bytes) -> None:
        """Send one message.

        Raises:
            ConnectionLostError: the connection broke.
        """
        ...

    def recv(self, timeout_s: float | None = None) -> bytes:
        """Wait for one message.

        Raises:
            ConnectionLostError: the connection broke, or nothing came in time.
        """
        ...

    def close(self) -> None:
        """End the connection; calling it again, or from another thread while `recv` waits, is fine."""
        ...

    def security(self) -> PeerSecurity:
        """How this connection is protected."""
        ...


Connect = Callable[[], Transport]
"""Opens a new connection to the same server; called again after a connection broke."""


class Acceptor(Protocol):
    """A server's end of one connection."""

    identity: str
    """Who the peer proved to be: certificate subject, token name, or ``"loopback"``."""

    async def send(self, data: bytes) -> None:
        """Send one message.

        Raises:
            ConnectionLostError: the connection broke.
        """
        ...

    async def recv(self) -> bytes:
        """Wait for one message.

        Raises:
            ConnectionLostError: the connection broke or was closed.
        """
        ...

    async def close(self) -> None:
        """End the connection."""
        ...
