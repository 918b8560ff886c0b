"""Would the server talk to just anyone? Found out by asking without certificate and token.

A client cannot see whether its certificate was demanded or merely offered; being let in without one tells.
"""

from __future__ import annotations

import ssl
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.errors import CutlayerError
from cutlayer.wire import frames
from cutlayer.wire.client_session import expect_info
from cutlayer.wire.pem import read_certificates
from cutlayer.wire.policy import url_policy
from cutlayer.wire.websocket import WebSocketTransport

if TYPE_CHECKING:
    from cutlayer.wire.transport import Connect

_MAX_MESSAGE_BYTES: Final = 1 << 20
_PATIENCE_S: Final = 10.0


class Access(msgspec.Struct, frozen=True):
    """By what a client made itself known, and whether that mattered."""

    certificate: str
    """Subject of the client's certificate, or empty."""
    token: bool
    strangers_admitted: bool


def check_access(url: str, *, keys: str | Path | None = None, token: str | Path | None = None) -> Access:
    """Connect as a stranger and say what the real client presents.

    Args:
        url: the server.
        keys: as for `cutlayer.connect`; of it, only ``ca.pem`` is used to connect.
        token: as for `cutlayer.connect`; not sent.
    """
    secure = url_policy(url).secure
    file = Path(keys) / "client.pem" if keys and secure else None
    subject = read_certificates(file)[0].subject.rfc4514_string() if file and file.exists() else ""
    context = _anonymous(Path(keys) if keys else None) if secure else None
    admitted = admits(lambda: WebSocketTransport(url, context, None, _MAX_MESSAGE_BYTES))
    return Access(subject, token is not None, admitted)


def admits(connect: Connect) -> bool:
    """Whether a server answers on a connection that was opened like this."""
    try:
        with closing(connect()) as transport:
            transport.send(frames.encode(frames.Info()))
            expect_info(transport.recv(_PATIENCE_S))
    except CutlayerError:
        # Under TLS 1.3 a refusal arrives at any point up to the first answer, as any of several errors.
        return False
    return True


def _anonymous(keys: Path | None) -> ssl.SSLContext:
    """As `cutlayer.wire.tls.client_context`, without the client's certificate."""
    context = ssl.create_default_context(cafile=keys / "ca.pem" if keys else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
