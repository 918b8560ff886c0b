"""A real link: its delay and rate as TCP meets them, and what is left when its owner dies."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import CutlayerError, InputError
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.netsim.link import Kind

    Start = Callable[[Link], tuple[str, int]]

RTT_MS = 60.0


def connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive(connection: socket.socket, count: int) -> None:
    while count > 0:
        data = connection.recv(1 << 16)
        assert data
        count -= len(data)


def ping_ms(connection: socket.socket) -> float:
    started = time.perf_counter()
    connection.sendall(b"x")
    receive(connection, 1)
    return (time.perf_counter() - started) * 1e3


def devices() -> set[str]:
    return {name for _, name in socket.if_nameindex() if name.startswith("cutnet")}


def gone(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not condition()


def test_round_trip_is_the_shapes(kind: Kind, echo: Start) -> None:
    with Link(Shape(rtt_ms=RTT_MS), kind) as link:
        assert link.kind == kind
        with connect(echo(link)) as connection:
            times = [ping_ms(connection) for _ in range(15)]
    assert min(times) >= RTT_MS
    assert statistics.median(times) < RTT_MS + 10  # other work on these cores included
    tally = link.tally
    assert tally is not None
    assert tally.late_ms_p50 is not None
    assert tally.late_ms_p50 < 1
    assert tally.carried >= 30


def test_rate_is_the_shapes(kind: Kind, echo: Start) -> None:
    size = 1_500_000  # 1 s at 12 Mbit/s
    with Link(Shape(rtt_ms=10, mbit_s=12), kind) as link, connect(echo(link)) as connection:
        started = time.perf_counter()
        threading.Thread(target=connection.sendall, args=(bytes(size),)).start()
        receive(connection, size)
        seconds = time.perf_counter() - started
    assert 1.0 <= seconds < 2.0


def test_jitter_shows_and_stays_within_bounds(kind: Kind, echo: Start) -> None:
    with Link(Shape(rtt_ms=40, jitter_ms=20, seed=1), kind) as link, connect(echo(link)) as connection:
        times = [ping_ms(connection) for _ in range(25)]
    assert max(times) - min(times) > 20
    assert statistics.median(times) < 40 + 15


def test_far_tcp_has_the_round_trip_in_its_own_clock(tun: None, echo: Start) -> None:
    """What a proxy cannot do: connecting takes a round trip, and lost packets come again."""
    with Link(Shape(rtt_ms=RTT_MS, loss=0.05, seed=3), "tun") as link:
        address = echo(link)
        started = time.perf_counter()
        with connect(address) as connection:
            assert time.perf_counter() - started >= RTT_MS / 1e3
            threading.Thread(target=connection.sendall, args=(bytes(300_000),)).start()
            receive(connection, 300_000)
    assert link.tally is not None
    assert link.tally.lost > 0


def test_links_are_independent(tun: None, echo: Start) -> None:
    before = devices()
    with Link(Shape(rtt_ms=5), "tun") as one, Link(Shape(rtt_ms=50), "tun") as other:
        assert one.far_host != other.far_host
        assert len(devices() - before) == 2
        with connect(echo(one)) as near, connect(echo(other)) as far:
            assert ping_ms(near) < 45
            assert ping_ms(far) >= 50
    assert devices() == before


def test_servers_end_with_the_link(kind: Kind) -> None:
    with Link(Shape(rtt_ms=0), kind) as link:
        server = link.run_server(["sleep", "60"])
        time.sleep(0.5)  # until it has become its command
        assert server.poll() is None
    assert server.returncode == -signal.SIGTERM


def test_what_servers_started_ends_with_the_link(tun: None) -> None:
    with Link(Shape(rtt_ms=0), "tun") as link:
        # The shell waits for nothing, so its child has no parent here when the link goes.
        server = link.run_server(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        orphan = int(server.stdout.readline())
        server.stdout.close()
        assert _runs(orphan)
    assert not _runs(orphan)


_OWNER = """
import time, sys
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape
with Link(Shape(rtt_ms=1), "tun") as link:
    server = link.run_server(["sleep", "600"])
    print(link.far_pid, server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_owner_dies(tun: None, number: signal.Signals) -> None:
    before = devices()
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout is not None
    left = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(left) == 2
    assert devices() > before
    owner.send_signal(number)
    owner.wait(20)
    owner.stdout.close()
    assert gone(lambda: any(_runs(pid) for pid in left))
    assert gone(lambda: devices() != before)


def test_nothing_is_left_when_the_forwarder_is_killed(tun: None) -> None:
    before = devices()
    with Link(Shape(rtt_ms=1), "tun") as link:
        server = link.run_server(["sleep", "5"])
        assert link.far_pid is not None
        os.kill(link.far_pid, signal.SIGKILL)
        assert gone(lambda: devices() != before)
        server.kill()
    assert link.tally is None


def test_command_that_is_not_there(kind: Kind) -> None:
    with Link(Shape(rtt_ms=0), kind) as link:
        if kind == "tun":
            server = link.run_server(["no-such-command"], stderr=subprocess.PIPE, text=True)
            assert "cannot run 'no-such-command'" in server.communicate()[1]
            assert server.returncode == 127
        else:
            with pytest.raises(InputError, match="cannot run 'no-such-command'"):
                link.run_server(["no-such-command"])


def test_without_permission_a_proxy_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an ordinary user meets it: the forwarder's own process is refused."""
    refused = tmp_path / "sitecustomize.py"
    refused.write_text(
        "import os\n"
        "real = os.open\n"
        "def refuse(path, *rest, **more):\n"
        "    if str(path) == '/dev/net/tun':\n"
        "        raise PermissionError(1, 'Operation not permitted', str(path))\n"
        "    return real(path, *rest, **more)\n"
        "os.open = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Link(Shape(rtt_ms=5)) as link:
        assert link.kind == "proxy"
        assert "Operation not permitted" in link.reason
        assert "slow start, loss recovery and TCP's window are not emulated" in str(link)
    with (
        pytest.raises(CutlayerError, match=r"Operation not permitted.*root or CAP_NET_ADMIN"),
        Link(Shape(rtt_ms=5), "tun"),
    ):
        pass
    with pytest.raises(InputError, match="neither lose nor reorder"), Link(Shape(rtt_ms=5, loss=0.1)):
        pass


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
