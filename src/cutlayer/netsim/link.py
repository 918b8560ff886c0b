"""A wide-area link between this process and servers it starts on the far side.

with Link(Shape(rtt_ms=80, mbit_s=100)) as link:
    server = link.run_server(["cutlayer", "serve", MODEL, "--listen", f"{link.far_host}:8410", "--keys", "keys/server"])
    connect(f"wss://{link.address(8410)}", keys="keys/client")

Packets pass through a forwarder with real TCP at both ends (`kind` is ``"tun"``), or, where that is not permitted, bytes pass
through a proxy that emulates much less (``"proxy"``). Whoever measures over a link says which it was.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from cutlayer.errors import CutlayerError, InputError
from cutlayer.netsim.messages import Failed, Listening, Message, Ready, Tally
from cutlayer.netsim.proxy import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from cutlayer.netsim.shape import Shape

Kind = Literal["tun", "proxy"]

_Said = TypeVar("_Said", Ready, Listening)

_STOP_S: Final = 15.0
_LISTEN: Final = "0A"
"""State of a listening socket in /proc/net/tcp."""


class Link:
    """An emulated link, up while inside ``with``.

    This side is this process's own network; the far side is a new network that only processes started with `run_server` or
    `prefix` are in. They are stopped with the link, however this process ends; over a proxy, unless it is killed.

    Args:
        shape: what happens to packets.
        kind: ``"tun"`` or ``"proxy"``; None takes ``"tun"`` where it is permitted.

    Raises:
        InputError: the shape asks for what a proxy cannot do.
        CutlayerError: no link of this kind here; the message has the reason.
    """

    kind: Kind
    far_host: str
    """Where servers of the far side listen."""
    device: str
    """The TUN device of this side, for packet captures; ``""`` of a proxy."""
    reason: str
    """Why it is only a proxy; ``""`` if it is not."""
    tally: Tally | None
    """What was carried, once the link is closed. Proxies count pieces of streams, and the last of them alone."""

    def __init__(self, shape: Shape, kind: Kind | None = None) -> None:
        self.shape = shape
        self.tally = None
        self.device = self.reason = ""
        self._wanted = kind
        self._forwarder: subprocess.Popen[bytes] | None = None
        self._proxies: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
        self._servers: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Link:
        if self._wanted == "proxy":
            self._become_proxy("asked for")
            return self
        try:
            self._forwarder, ready = _start(Ready, "forwarder", self._shape())
        except CutlayerError as error:
            if self._wanted == "tun":
                raise CutlayerError(
                    f"cannot make TUN devices: {error}. It takes Linux, /dev/net/tun, and root or CAP_NET_ADMIN with "
                    "CAP_SYS_ADMIN; a proxy needs none of these and emulates less"
                ) from None
            self._become_proxy(f"TUN devices: {error}")
        else:
            self.kind, self.far_host, self.device = "tun", ready.far, ready.device
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def far_pid(self) -> int | None:
        """A process whose network is the far side, for `nsenter`; None of a proxy, whose far side is this one."""
        return self._forwarder.pid if self._forwarder else None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command line starts with to run on the far side."""
        if self._forwarder is None:
            return ()
        return (sys.executable, "-m", "cutlayer.netsim.enter", str(self._forwarder.pid))

    def run_server(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on the far side; it is stopped with the link at the latest.

        Args:
            argv: command and arguments.
            options: of `subprocess.Popen`.

        Raises:
            InputError: there is no such command. On a far side of its own, that ends the process with exit code 127 instead.
        """
        try:
            process: subprocess.Popen[Any] = subprocess.Popen([*self.prefix, *argv], **options)  # noqa: S603
        except OSError as error:
            raise InputError(f"cannot run {argv[0]!r}: {error.strerror}") from error
        self._servers.append(process)
        return process

    def address(self, port: int) -> str:
        """HOST:PORT under which this side reaches a port of the far side's `far_host`.

        Raises:
            CutlayerError: the proxy for it could not be started.
        """
        if self.kind == "tun":
            return f"{self.far_host}:{port}"
        if port not in self._proxies:
            process, said = _start(Listening, "proxy", self._shape(), str(port))
            self._proxies[port] = (process, f"{LOOPBACK}:{said.port}")
        return self._proxies[port][1]

    def listening(self, port: int) -> bool:
        """Whether something on the far side accepts connections at `port`. Looked up, so the server does not notice."""
        tables = Path(f"/proc/{self.far_pid or 'self'}/net")
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in (tables / table).read_text().splitlines()[1:]:
                    _, local, _, state, *_ = line.split()
                    if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                        return True
        return False

    def close(self) -> None:
        """Stop the far side and take the link down."""
        if self._forwarder is None:
            for server in self._servers:
                server.terminate()
        processes = [process for process, _ in self._proxies.values()] + ([self._forwarder] if self._forwarder else [])
        for process in processes:
            self.tally = _stop(process)
        for server in self._servers:
            _wait(server)
        self._forwarder, self._proxies, self._servers = None, {}, []

    def _become_proxy(self, reason: str) -> None:
        if self.shape.loss or self.shape.reorder:
            raise InputError(
                f"a proxy can neither lose nor reorder packets, and only a proxy can be had here ({reason})"
            )
        self.kind, self.far_host, self.reason = "proxy", LOOPBACK, reason

    def _shape(self) -> str:
        return msgspec.json.encode(self.shape).decode()

    def __str__(self) -> str:
        if self.kind == "tun":
            return f"{self.shape}, through TUN devices with TCP at both ends"
        return f"{self.shape}, through a proxy ({self.reason}): slow start, loss recovery and TCP's window are not emulated"


def _start(expected: type[_Said], module: str, *arguments: str) -> tuple[subprocess.Popen[bytes], _Said]:
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", f"cutlayer.netsim.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, who then end it in good order
    )
    said = _hear(process)
    if isinstance(said, expected):
        return process, said
    _release(process)
    raise CutlayerError(
        said.reason if isinstance(said, Failed) else f"the {module} ended with exit code {process.returncode}"
    )


def _hear(process: subprocess.Popen[bytes]) -> Message | None:
    try:
        said: Message = msgspec.json.decode(process.stdout.readline() if process.stdout else b"", type=Message)
    except msgspec.DecodeError:
        return None
    return said


def _stop(process: subprocess.Popen[bytes]) -> Tally | None:
    if process.stdin:
        process.stdin.close()
    said = _hear(process)
    _release(process)
    return said if isinstance(said, Tally) else None


def _release(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    _wait(process)


def _wait(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
