"""HTTP to an engine: bounded in time and size, and to be broken off by another thread.

No redirect is followed and no proxy of the environment's is used: what is sent goes to the named host or nowhere. Bodies of
errors are not read: an engine's words are its own, and may quote what it was sent.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from cutlayer.errors import (
    CancelledError,
    ConnectionLostError,
    InputError,
    InsecureError,
    RemoteCode,
    RemoteError,
    UpstreamError,
    UpstreamTimeoutError,
)
from cutlayer.wire.policy import is_loopback

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Iterator

    from cutlayer.types import Secret

MOST_BODY_BYTES: Final = 64 << 20
"""Log-probabilities of the longest prompts are tens of megabytes."""
MOST_EVENT_BYTES: Final = 1 << 20
_CONNECT_S: Final = 10.0
_DONE: Final = b"[DONE]"
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


class Host:
    """Where an engine listens.

    Args:
        url: ``https://HOST[:PORT][/PATH]``, or ``http://`` on loopback.
        tls: settings for ``https``.
        token: bearer token it wants.
        silence_s: it may take so long for the next token.

    Raises:
        InputError: no such URL.
        InsecureError: ``http`` beyond loopback.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, token: Secret | None, silence_s: float) -> None:
        self._silence_s = silence_s
        self.loopback, base = _checked(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "cutlayer"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.reveal().decode('ascii')}"
        self._client = httpx2.Client(
            base_url=base,
            headers=headers,
            verify=tls if tls is not None else True,
            timeout=httpx2.Timeout(silence_s, connect=_CONNECT_S),
            # An answer ends when this side has enough, mostly before the engine's last event: connections are rarely used again.
            limits=httpx2.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    def exchange(self) -> Exchange:
        """For requests one after another, which can be broken off together."""
        return Exchange(self._client, self._silence_s)


class Exchange:
    """Requests one after another. All methods but `break_off` belong to one thread.

    Args:
        client: with the host's address.
        silence_s: see `Host`.
    """

    def __init__(self, client: httpx2.Client, silence_s: float) -> None:
        self._client = client
        self._silence_s = silence_s
        self._deadline = 0.0
        self._stream: Any = None
        self._broken_off = threading.Event()

    def break_off(self) -> None:
        """Have the thread that waits for the engine raise CancelledError. The engine sees the connection end."""
        self._broken_off.set()
        stream = self._stream
        if stream is not None:
            with suppress(OSError):
                # The base class's: that of a TLS socket changes the object under the thread that reads from it.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)

    def body(self, path: str, content: dict[str, Any] | None = None) -> bytes:
        """The answer to a GET, or to a POST of `content`.

        Raises:
            CancelledError: broken off.
            ConnectionLostError: nobody is there.
            RemoteError: the engine is busy, or wants another token.
            UpstreamError, UpstreamTimeoutError: it refuses, breaks off, or takes too long.
        """
        with self._sent(path, content) as response:
            received = bytearray()
            for chunk in self._chunks(response):
                received += chunk
                if len(received) > MOST_BODY_BYTES:
                    raise UpstreamError(f"the engine's answer is longer than {MOST_BODY_BYTES} bytes")
            return bytes(received)

    @contextmanager
    def events(self, path: str, content: dict[str, Any]) -> Generator[Iterator[bytes], None, None]:
        """Data of server-sent events that answer a POST. Leaving the block ends the connection.

        Raises:
            As `body`.
        """
        with self._sent(path, content) as response:
            yield self._events(response)

    def heard(self) -> None:
        """The answer goes on: the engine has its time again."""
        self._deadline = time.monotonic() + self._silence_s

    @contextmanager
    def _sent(self, path: str, content: dict[str, Any] | None) -> Generator[httpx2.Response, None, None]:
        self.heard()
        method, data, headers = "GET", None, {}
        if content is not None:
            method, data, headers = "POST", msgspec.json.encode(content), {"Content-Type": "application/json"}
        with (
            self._errors(),
            self._client.stream(
                method, path, content=data, headers=headers, extensions={"trace": self._follow}
            ) as response,
        ):
            _check_status(response.status_code)
            yield response

    def _follow(self, event: str, info: dict[str, Any]) -> None:
        """Keep the connection's end, to be broken off by."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
            if self._broken_off.is_set():
                self.break_off()

    def _chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        for chunk in response.iter_raw():
            if time.monotonic() > self._deadline:
                raise UpstreamTimeoutError(self._too_long())
            yield chunk
        if self._broken_off.is_set():  # where only the end of the connection ends a body, it looks complete
            raise CancelledError("the request was broken off")

    def _events(self, response: httpx2.Response) -> Iterator[bytes]:
        held = bytearray()
        for chunk in self._chunks(response):
            held += chunk
            *lines, held = held.split(b"\n")
            for line in lines:
                data = bytes(line.removesuffix(b"\r"))
                if data.startswith(b"data:"):
                    data = data[5:].strip()
                    if data == _DONE:
                        return
                    yield data
            if len(held) > MOST_EVENT_BYTES:
                raise UpstreamError(f"an event of the engine's is longer than {MOST_EVENT_BYTES} bytes")

    @contextmanager
    def _errors(self) -> Generator[None, None, None]:
        """The library's errors as ours."""
        try:
            yield
        except httpx2.HTTPError as error:
            if self._broken_off.is_set():
                raise CancelledError("the request was broken off") from None
            if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
                raise ConnectionLostError("the engine cannot be reached") from error
            if isinstance(error, httpx2.TimeoutException):
                raise UpstreamTimeoutError(self._too_long()) from error
            if isinstance(error, (httpx2.NetworkError, httpx2.RemoteProtocolError)):
                raise UpstreamError("the engine broke its answer off, or speaks no HTTP") from error
            raise UpstreamError("the engine's answer cannot be read") from error

    def _too_long(self) -> str:
        return f"the engine said nothing for {self._silence_s:g} s"


def _checked(url: str) -> tuple[bool, str]:
    """Whether it is this machine, and the URL without what tells nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or port == 0:
        raise InputError("an upstream's URL is https://HOST[:PORT][/PATH], or http:// on loopback")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "an upstream's URL holds no credentials; put the bearer token into a file and name it by --token"
        )
    if not _PATH.fullmatch(parts.path):
        raise InputError("the path of an upstream's URL has only letters, digits and -._~ between slashes")
    if parts.scheme == "http" and not is_loopback(host):
        raise InsecureError(
            "http:// beyond loopback shows the network the bearer token, and ids under one fixed substitution; use https://, "
            "or a tunnel to the engine"
        )
    return is_loopback(host), url.rstrip("/").removesuffix("/v1")


def _check_status(status: int) -> None:
    if status == httpx2.codes.OK:
        return
    if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
        raise RemoteError(RemoteCode.UNAUTHORISED, "the engine wants a bearer token; name its file by --token")
    if status in (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE):
        raise RemoteError(RemoteCode.LIMIT, "the engine is busy or still loading")
    raise UpstreamError(f"the engine refused the request with HTTP status {status}")
