"""The process that carries packets between two TUN devices: ``python -m cutlayer.netsim.forwarder SHAPE``.

A process of its own, so that no other program's interpreter lock delays packets. It lives in the far side's network, which
exists as long as it does. It prints a `Ready` line, carries packets until its standard input ends, which happens when its
parent goes, however it goes, and then stops whoever is left on the far side and prints a `Tally` line.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections import deque
from heapq import heappop, heappush
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec

from cutlayer.netsim.device import MTU, configure, enter_new_namespace, namespace_of, open_device
from cutlayer.netsim.direction import Direction
from cutlayer.netsim.messages import Failed, Ready, Tally, say, tally_of
from cutlayer.netsim.shape import Shape

DEVICE: Final = "cutnet"
NETWORK: Final = IPv4Address("198.19.0.0")
"""Half of what RFC 2544 sets aside for measuring networks. Each link takes four addresses."""
_LINKS: Final = 1 << 14
_BURST_PACKETS: Final = 64
"""Read at a time, before what is due goes out."""
_REMEMBERED: Final = 50_000
_FAREWELL_S: Final = 10.0
"""For processes of the far side between SIGTERM and SIGKILL."""


def main() -> int:
    """Run as a process."""
    shape = msgspec.json.decode(sys.argv[1], type=Shape)
    try:
        near, name = open_device(f"{DEVICE}%d")
        number = int(name.removeprefix(DEVICE))
        if number >= _LINKS:
            raise OSError(f"{number} links are up already")
        first = NETWORK + 4 * number
        configure(name, str(first + 1))
        enter_new_namespace()
        far, _ = open_device(name)
        configure(name, str(first + 2))
    except OSError as error:
        say(Failed(f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")))
        return 1
    _hurry()
    say(Ready(far=str(first + 2), device=name))
    tally = carry(near, far, shape, sys.stdin.fileno())
    _stop_far_side()
    with contextlib.suppress(BrokenPipeError):
        say(tally)
    return 0


def carry(near: int, far: int, shape: Shape, until: int) -> Tally:
    """Carry packets both ways until the descriptor `until` can be read."""
    gc.disable()  # nothing here makes cycles, and a collection in the middle of a burst would be jitter
    out, back = Direction(shape, "out"), Direction(shape, "back")
    routes = {near: (far, out), far: (near, back)}
    under_way: list[tuple[float, int, int, bytes]] = []  # due, number, descriptor, packet
    number = 0
    late: deque[float] = deque(maxlen=_REMEMBERED)
    clock = time.monotonic
    while True:
        now = clock()
        while under_way and under_way[0][0] <= now:
            due, _, target, packet = heappop(under_way)
            os.write(target, packet)
            late.append(now - due)
            now = clock()
        readable, _, _ = select.select((until, near, far), (), (), under_way[0][0] - now if under_way else None)
        if until in readable:
            return tally_of(number - out.overflowed - back.overflowed - out.lost - back.lost, (out, back), late)
        for source in readable:
            target, direction = routes[source]
            for _ in range(_BURST_PACKETS):
                try:
                    packet = os.read(source, MTU)
                except BlockingIOError:
                    break
                arrival = direction.carry(len(packet), clock())
                number += 1
                if arrival is not None:
                    heappush(under_way, (arrival, number, target, packet))


def _hurry() -> None:
    """Run before everything ordinary, where that is permitted: a packet is due when it is due."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _stop_far_side() -> None:
    """End every other process of this network. It is this link's own, so nobody else can be in it."""
    left = _others()
    for descriptor in left:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    deadline = time.monotonic() + _FAREWELL_S
    while left and (seconds := deadline - time.monotonic()) > 0:
        ended, _, _ = select.select(left, (), (), seconds)
        left = [descriptor for descriptor in left if descriptor not in ended]
    for descriptor in [*left, *_others()]:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _others() -> list[int]:
    here, own = namespace_of("self"), os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        with contextlib.suppress(OSError):  # ended meanwhile
            # Opened first: should the number be given to another process, the descriptor stays with this one.
            descriptor = os.pidfd_open(int(entry.name))
            if namespace_of(entry.name) == here:
                found.append(descriptor)
            else:
                os.close(descriptor)
    return found


if __name__ == "__main__":
    sys.exit(main())
