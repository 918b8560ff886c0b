"""Where hidden states may travel: unencrypted on loopback alone, elsewhere under TLS between parties that know each other."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from cutlayer.errors import InputError, InsecureError

_FORM: Final = "wss://HOST:PORT[/PATH], or ws://HOST:PORT on loopback"
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~/-]*)?")


class Endpoint(NamedTuple):
    """A server's address, checked."""

    scheme: Literal["ws", "wss"]
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    path: str

    @property
    def secure(self) -> bool:
        """Whether TLS protects it."""
        return self.scheme == "wss"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def is_loopback(host: str) -> bool:
    """Whether `host` is this very machine: 127.0.0.0/8, ::1 or the name localhost (kept for loopback by RFC 6761).

    Other names are not looked up: what they resolve to can change between the check and the connection.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def listen_policy(host: str, tls: bool, authenticated: bool) -> None:
    """Refuse to listen where strangers could read hidden states or use the server.

    Args:
        host: address to listen on.
        tls: whether connections are encrypted.
        authenticated: whether clients prove who they are, by certificate or token.

    Raises:
        InsecureError: `host` is not loopback and either is missing.
    """
    if is_loopback(host):
        return
    if not tls:
        raise InsecureError(
            f"listening on {host!r} without TLS would show hidden states to the network; create certificates with "
            "`cutlayer keys create DIR --host NAME` and pass --keys DIR/server, or listen on 127.0.0.1"
        )
    if not authenticated:
        raise InsecureError(
            f"listening on {host!r} without authentication would serve everyone; require client certificates, or pass "
            "--token FILE (`cutlayer keys token FILE` writes one), or listen on 127.0.0.1"
        )


def url_policy(url: str) -> Endpoint:
    """Check a server's URL and take it apart.

    Raises:
        InputError: not of the form ``wss://HOST:PORT[/PATH]`` or ``ws://HOST:PORT[/PATH]``.
        InsecureError: ``ws://`` to another machine, or a password in the URL. Neither message repeats the latter.
    """
    if "@" in url:
        # Before anything else, and without the URL: whatever stands before the @ may be a secret.
        raise InsecureError(f"the server URL holds credentials, which end up in logs; use --token FILE. Form: {_FORM}")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is no server URL ({error}); the form is {_FORM}") from None
    if scheme not in {"ws", "wss"}:
        raise InputError(f"{url!r} does not begin with wss:// or ws://; the form is {_FORM}")
    if not _is_host(host):
        raise InputError(f"{url!r} names no valid host; the form is {_FORM}")
    if not port:
        raise InputError(f"{url!r} names no port, e.g. :8443; the form is {_FORM}")
    # urlsplit drops an empty query or fragment and strips control characters: compare with what was written.
    endpoint = Endpoint(cast("Literal['ws', 'wss']", scheme), host, port, parts.path)
    if not _PATH.fullmatch(parts.path) or str(endpoint) != url.lower()[: len(url) - len(parts.path)] + parts.path:
        raise InputError(f"{url!r} has more than scheme, host, port and a plain path; the form is {_FORM}")
    if scheme == "ws" and not is_loopback(host):
        raise InsecureError(
            f"{url} is unencrypted, and {host} is not this machine; use wss://{str(endpoint).removeprefix('ws://')} "
            "(the server needs --keys), or a tunnel to a ws:// port on 127.0.0.1"
        )
    return endpoint


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).scope_id is None
        except ValueError:
            return False
    return _HOST.fullmatch(host) is not None
