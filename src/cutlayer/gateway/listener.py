"""A bound socket for an HTTP server, and how its address is written."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def bound(host: str, port: int) -> Generator[socket.socket, None, None]:
    """A socket bound to `host` and `port`, closed at the end; port 0 takes a free one.

    Raises:
        InputError: the name is unknown here, or the port is taken.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _refused(host, port, error) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(target)
        except OSError as error:
            raise _refused(host, port, error) from error
        yield listener


def authority(host: str, port: int) -> str:
    """``host:port`` as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refused(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"cannot listen on {host}:{port}: {error.strerror or error}")
