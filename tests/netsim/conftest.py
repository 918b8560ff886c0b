"""A link of each kind this machine can have, and a server for its far side."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import CutlayerError
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.netsim.link import Kind

# Answers each byte it gets with itself; on the far side, in a process of its own.
_ECHO = """
import socket, sys, threading
def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(1 << 16):
        connection.sendall(data)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def _reason() -> str:
    try:
        with Link(Shape(rtt_ms=0), "tun"):
            return ""
    except CutlayerError as error:
        return str(error)


@pytest.fixture(scope="session")
def tun() -> None:
    """Skips, with the reason, where there can be no TUN devices."""
    reason = _reason()
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=["tun", "proxy"])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "tun":
        request.getfixturevalue("tun")
    kind: Kind = request.param
    return kind


@pytest.fixture
def echo(unused_port: int) -> Callable[[Link], tuple[str, int]]:
    """Start the server on a link's far side; where this side reaches it."""

    def start(link: Link) -> tuple[str, int]:
        link.run_server([sys.executable, "-c", _ECHO, link.far_host, str(unused_port)])
        deadline = time.monotonic() + 20
        while not link.listening(unused_port):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        host, _, port = link.address(unused_port).rpartition(":")
        return host, int(port)

    return start


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
