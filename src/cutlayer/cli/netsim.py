"""`cutlayer netsim`: a slow network between two commands on this machine."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from cutlayer.errors import CutlayerError, InputError

if TYPE_CHECKING:
    from cutlayer.netsim.link import Link

_POLL_S: Final = 0.05
_SIGNALLED: Final = 128
"""Shells add the number of the signal that ended a command."""


def netsim(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    rtt: float = 80.0,
    rate: float = 100.0,
    jitter: float = 0.0,
    loss: float = 0.0,
    queue: float | None = None,
    reorder: Annotated[bool, Parameter(negative=())] = False,
    seed: int | None = None,
    kind: Literal["auto", "tun", "proxy"] = "auto",
    far: str | None = None,
    port: int = 8410,
    patience: float = 120.0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run a command on this side of an emulated wide-area link, and a server on the far side.

    In both commands {host} stands for the far side's address, {listen} for HOST:PORT there, and {server} for HOST:PORT under
    which this side reaches it:

    cutlayer keys create keys --host 198.19.0.2 --host 127.0.0.1

    cutlayer netsim --rtt 80 --far "cutlayer serve MODEL --listen {listen} --keys keys/server" -- cutlayer generate PROMPT
    --server wss://{server} --keys keys/client

    Without a command the link stays up until the far command ends or Ctrl-C. The exit code is the command's.

    Parameters
    ----------
    command
        What to run on this side, after --, once the far side listens.
    rtt
        Round trip in milliseconds; each way takes half.
    rate
        Mbit/s each way; 0 sets no limit.
    jitter
        Each packet's delay varies by up to so many milliseconds; at most half the round trip.
    loss
        Share of packets that vanish, 0 to 1.
    queue
        Kilobytes that wait for the rate before packets are dropped; default: what the link carries in a round trip.
    reorder
        Let jitter change the order of packets.
    seed
        Makes jitter and loss repeatable.
    kind
        tun: packets, with real TCP at both ends; needs root. proxy: a delaying proxy, which emulates neither slow start nor
        loss. auto: tun where permitted.
    far
        What to run on the far side, as one argument.
    port
        On the far side, where its command listens.
    patience
        Seconds for the far command to listen.
    json
        Print the ready line as one JSON object.
    """
    from cutlayer.netsim.link import Link
    from cutlayer.netsim.shape import Shape

    if not 0 < port <= 0xFFFF:
        raise InputError(f"--port {port}; give 1 to 65535")
    if not 0 <= patience < float("inf"):
        raise InputError(f"--patience {patience:g}; give seconds")
    if command and far is None:
        raise InputError("there is nothing on the far side for the command to talk to; pass --far COMMAND")
    shape = Shape(
        rtt_ms=rtt, mbit_s=rate, jitter_ms=jitter, loss=loss, queue_kb=queue, reorder=reorder, seed=seed
    )  # fmt: skip
    far_command = _split(far) if far is not None else []
    # SIGTERM takes the link down in good order, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(_SIGNALLED + number))
    with Link(shape, None if kind == "auto" else kind) as link:
        names = {"host": link.far_host, "listen": f"{link.far_host}:{port}", "server": link.address(port)}
        server = link.run_server(_filled(far_command, names), start_new_session=True) if far_command else None
        if server is not None:
            _await_listening(link, port, server, patience)
        _announce(link, names, json)
        if command:
            return _exit_code(_run(_filled(command, names)))
        if server is not None:
            return _exit_code(server.wait())
        signal.pause()
    return 0


def _split(command: str) -> list[str]:
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--far {command!r} is no command line: {error}") from None
    if not parts:
        raise InputError("--far is empty; give a command")
    return parts


def _filled(command: list[str] | tuple[str, ...], names: dict[str, str]) -> list[str]:
    """Placeholders replaced one by one: a command may hold other braces."""
    filled = []
    for part in command:
        for name, value in names.items():
            part = part.replace(f"{{{name}}}", value)
        filled.append(part)
    return filled


def _await_listening(link: Link, port: int, server: subprocess.Popen[Any], patience: float) -> None:
    from rich.console import Console

    deadline = time.monotonic() + patience
    with Console(stderr=True).status(f"waiting for the far side to listen on port {port}"):
        while not link.listening(port):
            if server.poll() is not None:
                raise CutlayerError(f"the far command ended with exit code {_exit_code(server.returncode)}")
            if time.monotonic() > deadline:
                raise CutlayerError(f"nothing listens on port {port} of the far side after {patience:g} s; see --port")
            time.sleep(_POLL_S)


def _announce(link: Link, names: dict[str, str], as_json: bool) -> None:
    import msgspec

    if as_json:
        ready = {
            "kind": link.kind,
            "reason": link.reason,
            "shape": link.shape,
            "device": link.device,
            "enter": link.prefix,
            **names,
        }
        sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
        sys.stdout.flush()
        return
    enter = f"to run there: {shlex.join(link.prefix)} COMMAND\n" if link.prefix else ""
    sys.stderr.write(f"cutlayer: {link}\nfar side {names['listen']}, reached at {names['server']}\n{enter}")


def _run(command: list[str]) -> int:
    try:
        process = subprocess.Popen(command)  # noqa: S603 - the user's own command
    except OSError as error:
        raise InputError(f"cannot run {command[0]!r}: {error.strerror}") from error
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sends Ctrl-C to the command as well, which knows what to make of it
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else _SIGNALLED - returned
