"""Network namespaces and TUN devices of Linux, by system call: nothing has to be installed, and nothing outlives its holders.

A TUN device goes when its file is closed, a namespace without a name when its last process ends, so a killed forwarder
leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

MTU: Final = 1500
"""Of Ethernet: TCP counts its window in packets, so larger ones would open it faster than any real link does."""

_CLONE_NEWNET: Final = 0x4000_0000
_TUN: Final = Path("/dev/net/tun")
_QUEUED_PACKETS: Final = 10_000
"""Between the kernel and the forwarder. Packets are to be dropped by the emulated queue alone."""

# linux/if_tun.h, linux/sockios.h, linux/if.h
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
_IFF_UP: Final = 0x1
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943


def enter_new_namespace() -> None:
    """Give this process an empty network of its own, with loopback up.

    Raises:
        OSError: not permitted, or not Linux.
    """
    _call("unshare", _CLONE_NEWNET)
    _bring_up("lo")


def enter_namespace_of(pid: int) -> None:
    """Move this process into the network of another.

    Raises:
        OSError: no such process, or not permitted.
    """
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        _call("setns", namespace.fileno(), _CLONE_NEWNET)


def namespace_of(pid: int | str) -> tuple[int, int]:
    """What tells the network of a process from others.

    Raises:
        OSError: no such process, or not permitted.
    """
    status = Path(f"/proc/{pid}/ns/net").stat()
    return status.st_dev, status.st_ino


def open_device(pattern: str) -> tuple[int, str]:
    """Create a TUN device in this process's network.

    Args:
        pattern: its name; the kernel puts the lowest free number in place of ``%d``.

    Returns:
        A non-blocking descriptor that reads and writes IP packets, and the device's name.

    Raises:
        OSError: no /dev/net/tun, or not permitted.
    """
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", pattern.encode(), _IFF_TUN_WITHOUT_HEADER)
    try:
        answer = fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, answer[:16].rstrip(b"\0").decode()


def configure(name: str, address: str) -> None:
    """Give a device an IPv4 address in a network of two hosts, and bring it up; the route comes with the address.

    Raises:
        OSError: no such device, or not permitted.
    """
    _request(_SIOCSIFADDR, name, _socket_address(address))
    _request(_SIOCSIFNETMASK, name, _socket_address("255.255.255.252"))
    _request(_SIOCSIFMTU, name, struct.pack("i", MTU))
    _request(_SIOCSIFTXQLEN, name, struct.pack("i", _QUEUED_PACKETS))
    _bring_up(name)


def _bring_up(name: str) -> None:
    (flags,) = struct.unpack_from("h", _request(_SIOCGIFFLAGS, name, b""), 16)
    _request(_SIOCSIFFLAGS, name, struct.pack("h", flags | _IFF_UP))


def _request(number: int, name: str, value: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, number, struct.pack("16s24s", name.encode(), value))


def _socket_address(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _call(function: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
