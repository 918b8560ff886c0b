"""``HOST:PORT`` as the command line takes it."""

from __future__ import annotations

from cutlayer.errors import InputError


def parse_address(text: str) -> tuple[str, int]:
    """Host, an IPv6 one without brackets, and port.

    Raises:
        InputError: not of that form.

    Examples:
        >>> parse_address("[::1]:8410")
        ('::1', 8410)
    """
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise InputError(f"--listen {text!r} is not HOST:PORT, e.g. 127.0.0.1:8410")
    return host, int(port)
