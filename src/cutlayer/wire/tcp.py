"""How TCP decides how much to send, per socket: what a conversation over a long way needs is not what a download needs.

A step is a burst of some tens of kilobytes after a silence. Cubic sends a burst at once, as far as its window goes; BBR spreads
packets over the rate it has measured, and bursts alone never let it measure a high one. So steps take up to twice as long
under BBR after a short prompt, and as long as the link needs under cubic, once its window is open. What closes it, an idle
fifth of a second and a round trip, `KeepWarm` prevents. Where a hundredth of all packets is lost, BBR is the faster of the
two. `docs/wan.md` has the measurements.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Final, Protocol

from cutlayer.errors import InputError

PREFERRED: Final = "cubic"

_LONGEST_NAME: Final = 16
_AVAILABLE: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
# Absent where the option is.
_OPTION: Final = getattr(socket, "TCP_CONGESTION", None)


class OptionsOfSocket(Protocol):
    """A socket, or asyncio's stand-in for one."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """As of `socket.socket`."""
        ...

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """As of `socket.socket`."""
        ...


def set_congestion_control(sock: OptionsOfSocket, name: str | None = None) -> None:
    """Choose how a socket, or all that a listening socket will accept, finds its rate.

    Args:
        sock: a TCP socket.
        name: as Linux names them; None is `PREFERRED` if the kernel lets this user have it, and otherwise its default.

    Raises:
        InputError: the kernel has no `name`, or keeps it from this user.
    """
    if name is not None and not (name.isascii() and name.isprintable() and 0 < len(name) < _LONGEST_NAME):
        raise InputError(f"{name!r} cannot be a TCP congestion control; available: {_available()}")
    try:
        if _OPTION is None:
            raise OSError("this system has no choice of congestion control")
        sock.setsockopt(socket.IPPROTO_TCP, _OPTION, (name or PREFERRED).encode())
    except OSError as error:
        if name is not None:
            reason = "unknown to this kernel" if error.errno == errno.ENOENT else error.strerror or error
            raise InputError(
                f"TCP congestion control {name!r}: {reason}; available: {_available()}, of which users "
                "other than root get those in net.ipv4.tcp_allowed_congestion_control"
            ) from None


def dial(host: str, port: int, timeout_s: float, congestion: str | None = None) -> socket.socket:
    """Connect, with the congestion control chosen before the first packet.

    Later is too late: a connection that began under BBR spreads its packets under any other too.

    Raises:
        InputError: see `set_congestion_control`.
        OSError: nobody answers.
    """
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            set_congestion_control(sock, congestion)
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            sock.settimeout(None)
            return sock
    raise failure


def congestion_control(sock: OptionsOfSocket) -> str:
    """What a socket uses; ``"unknown"`` where systems do not say."""
    if _OPTION is None:
        return "unknown"
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, _OPTION, _LONGEST_NAME).split(b"\0")[0].decode("ascii", "replace")
    except OSError:  # not TCP
        return "unknown"


def _available() -> str:
    try:
        return ", ".join(_AVAILABLE.read_text().split())
    except OSError:
        return "unknown on this system"
