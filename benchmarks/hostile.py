"""What others notice of an attack: p99 decode step of eight chatting sessions, quiet and under each of several floods.

The attackers are a process of their own with a valid certificate. Server, chatters and attackers share this machine's cores, as
attackers elsewhere would not, so theirs is the lowest priority. Prints and writes the record ``hostile``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import dialler
from cutlayer.errors import WireError
from cutlayer.records.record import Figure, exact, new_record, quantile
from cutlayer.types import check_dtype
from cutlayer.wire import frames
from cutlayer.wire.tls import client_context
from load import Load, apply_load, encoded_rows
from report import command, finish

CHATTING: Final = 8
_SESSIONS: Final = 16
_THREADS: Final = 4
_SLOW_SOCKETS: Final = 200
_DRIP_S: Final = 1.0
_HEADER_BYTES: Final = 512 << 10
_SETTLE_S: Final = 2.0
_REQUEST: Final = (
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {frames.SUBPROTOCOL}\r\n\r\n"
).encode()

app = App(help=__doc__)


class Target:
    """A server under attack.

    Args:
        url: of it.
        keys: with a valid certificate.
        over: set when it is enough.
        attempts: counted here.
    """

    def __init__(self, url: str, keys: Path, over: Event, attempts: Synchronized[int]) -> None:
        self.url = url
        self.keys = keys
        self._context = client_context(keys)
        self._over = over
        self._attempts = attempts

    def dial(self) -> ssl.SSLSocket:
        """A connection that has said nothing yet."""
        host, port = self.url.removeprefix("wss://").split(":")
        return self._context.wrap_socket(socket.create_connection((host, int(port)), timeout=20), server_hostname=host)

    def goes_on(self) -> bool:
        """Whether it is not enough yet; counts an attempt."""
        with self._attempts.get_lock():
            self._attempts.value += 1
        return not self._over.is_set()


def connections(target: Target) -> None:
    """Connect, ask to be let in, hang up, as fast as it goes."""
    while target.goes_on():
        with contextlib.suppress(OSError), target.dial() as channel:
            channel.sendall(_REQUEST)
            channel.recv(12)


def drips(target: Target) -> None:
    """Many requests of which a byte comes now and then."""
    slow: list[ssl.SSLSocket] = []
    while target.goes_on():
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while len(slow) < _SLOW_SOCKETS // _THREADS:
                slow.append(target.dial())
                slow[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
                slow[-1].settimeout(0.0)
        for channel in list(slow):
            try:
                channel.sendall(b"y")
                if not channel.recv(1):
                    raise ConnectionResetError
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                slow.remove(channel)
                channel.close()
        time.sleep(max(0.0, began + _DRIP_S - time.monotonic()))
    for channel in slow:
        channel.close()


def headers(target: Target) -> None:
    """Requests with headers of half a megabyte."""
    lines = (b"X: " + b"y" * 8000 + b"\r\n") * (_HEADER_BYTES // 8000)
    while target.goes_on():
        with contextlib.suppress(OSError), target.dial() as channel:
            channel.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines)
            channel.recv(12)


def guesses(target: Target) -> None:
    """Ask for sessions by guessed ids, one after the other."""
    connect = dialler(target.url, keys=target.keys)
    with contextlib.suppress(WireError):
        transport = connect()
        while target.goes_on():
            transport.send(frames.encode(frames.Resume(secrets.token_bytes(frames.SESSION_BYTES), 2, 0)))
            if b"unknown_session" not in transport.recv(20):
                raise RuntimeError("a guessed session id was not refused")
        transport.close()


ATTACKS: Final[dict[str, Callable[[Target], None]]] = {
    "connection_flood": connections,
    "slow_loris": drips,
    "header_flood": headers,
    "session_guessing": guesses,
}


def attack(name: str, url: str, keys: Path, over: Event, attempts: Synchronized[int]) -> None:
    """Run an attack in several threads until it is enough."""
    os.nice(19)
    target = Target(url, keys, over, attempts)
    threads = [threading.Thread(target=ATTACKS[name], args=(target,)) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def under(name: str, load: Load) -> tuple[list[float], float]:
    """Seconds of the chatters' steps during an attack, and the attack's attempts per second."""
    spawn = multiprocessing.get_context("spawn")
    over, attempts = spawn.Event(), spawn.Value("q", 0)
    process = spawn.Process(target=attack, args=(name, load.url, load.keys, over, attempts))
    process.start()
    try:
        while not attempts.value and process.is_alive():
            time.sleep(0.05)
        time.sleep(_SETTLE_S)
        before, began = attempts.value, time.perf_counter()
        steps = chat(load)
        rate = (attempts.value - before) / (time.perf_counter() - began)
    finally:
        over.set()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"the attack {name} ended with {process.exitcode}")
    return steps, rate


def chat(load: Load) -> list[float]:
    """Seconds of all steps of all chatting sessions."""
    return [taken for session in apply_load(load).latencies for taken in session]


@app.default
def main(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    dtype: str = "bfloat16",
    attacks: tuple[str, ...] = tuple(ATTACKS),
    seconds: float = 10.0,
    rounds: int = 3,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    dtype
        Of the server.
    attacks
        Which.
    seconds
        Of each measurement.
    rounds
        How often each is repeated, in turn, each time right after a quiet one it is compared with.
    write
        Whether to write the record.
    """
    dtype_name = check_dtype(dtype)
    rows, row_bytes = encoded_rows(model, cut, dtype_name)
    quiet: dict[str, list[list[float]]] = {name: [] for name in attacks}
    beside: dict[str, list[list[float]]] = {name: [] for name in attacks}
    rates: dict[str, list[float]] = {name: [] for name in attacks}
    with ServerProcess(model, cut, (f"--dtype={dtype}", f"--max-sessions={_SESSIONS}")) as server:
        load = Load(server.url, server.client_keys, dtype_name, rows, row_bytes, CHATTING, 128, 128, seconds)
        apply_load(load._replace(seconds=1.0))
        for _ in range(rounds):
            for name in attacks:
                quiet[name].append(chat(load))
                steps, rate = under(name, load)
                beside[name].append(steps)
                rates[name].append(rate)
                sys.stderr.write(
                    f"{name}: p99 {_p99([quiet[name][-1]]).value:.1f} → {_p99([steps]).value:.1f} ms, {rate:.0f} attempts/s\n"
                )
    figures: dict[str, Figure] = {"step_ms_p99_quiet": _p99([steps for name in attacks for steps in quiet[name]])}
    for name in attacks:
        figures[f"step_ms_p99_{name}"] = _p99(beside[name])
        ratio = figures[f"step_ms_p99_{name}"].value / _p99(quiet[name]).value
        figures[f"p99_{name}_over_quiet"] = exact(ratio, "ratio", len(quiet[name]))
        figures[f"attempts_per_s_{name}"] = exact(sum(rates[name]) / rounds, "attempts/s", rounds)
    samples: dict[str, list[Any]] = {}
    for name in attacks:
        samples[f"step_ms_quiet_before_{name}"] = [_ms(steps) for steps in quiet[name]]
        samples[f"step_ms_{name}"] = [_ms(steps) for steps in beside[name]]
    config = {
        "model": model, "cut": cut, "dtype": dtype, "chatting": CHATTING, "seconds": seconds, "rounds": rounds,
        "max_sessions": _SESSIONS, "attacking_threads": _THREADS, "slow_sockets": _SLOW_SOCKETS, "attackers_niceness": 19,
        "transport": "TLS 1.3 with client certificates, on loopback",
    }  # fmt: skip
    finish(new_record("hostile", command("hostile"), config, figures, samples), write=write)


def _p99(rounds: list[list[float]]) -> Figure:
    return quantile([taken for steps in rounds for taken in _ms(steps)], 0.99, "ms")


def _ms(seconds: list[float]) -> list[float]:
    return [round(taken * 1e3, 2) for taken in seconds]


if __name__ == "__main__":
    app()
