"""A delaying TCP proxy on loopback, for machines without TUN: ``python -m cutlayer.netsim.proxy SHAPE PORT``.

Each TCP connection ends here and another one goes on, both over loopback. So bytes arrive late and at the rate, but slow
start, loss recovery and the window over a real distance are not emulated: what costs whole round trips on a wide-area
network costs nothing here. Prints a `Listening` line, and a `Tally` line once its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import Final

import msgspec

from cutlayer.netsim.direction import Direction
from cutlayer.netsim.messages import Listening, say, tally_of
from cutlayer.netsim.shape import Shape

LOOPBACK: Final = "127.0.0.1"
_PIECE_BYTES: Final = 8 << 10
"""Read at a time: 0.7 ms at 100 Mbit/s."""
_REMEMBERED: Final = 50_000


class Line:
    """One direction, shared by all connections as a real link's rate is."""

    def __init__(self, shape: Shape, salt: str) -> None:
        self.direction = Direction(shape, salt)
        self.late_s: deque[float] = deque(maxlen=_REMEMBERED)
        self.carried = 0
        self._lock = threading.Lock()
        self._rate = shape.bytes_per_s
        self._queue_bytes = shape.queue_bytes

    def join(self, source: socket.socket, target: socket.socket) -> None:
        """Carry bytes from one to the other, in two threads, until either ends."""
        under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        threading.Thread(target=self._take, args=(source, under_way), daemon=True).start()
        threading.Thread(target=self._give, args=(source, target, under_way), daemon=True).start()

    def _take(self, source: socket.socket, under_way: SimpleQueue[tuple[float, bytes]]) -> None:
        piece = b"first"
        while piece:
            try:
                piece = source.recv(_PIECE_BYTES)
            except OSError:
                piece = b""
            with self._lock:
                now = time.monotonic()
                due = self.direction.pass_through(len(piece), now)
                excess = self.direction.backlog_bytes(now) - self._queue_bytes
                self.carried += 1
            under_way.put((due, piece))
            if excess > 0:
                # Nothing may be dropped from a stream: a full queue holds the sender back instead.
                time.sleep(excess / self._rate)

    def _give(self, source: socket.socket, target: socket.socket, under_way: SimpleQueue[tuple[float, bytes]]) -> None:
        try:
            while True:
                due, piece = under_way.get()
                time.sleep(max(due - time.monotonic(), 0))
                self.late_s.append(time.monotonic() - due)
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
        except OSError:
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)


def main() -> int:
    """Run as a process."""
    shape, port = msgspec.json.decode(sys.argv[1], type=Shape), int(sys.argv[2])
    out, back = Line(shape, "out"), Line(shape, "back")
    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, out, back), daemon=True).start()
        say(Listening(listener.getsockname()[1]))
        os.read(sys.stdin.fileno(), 1)
    with contextlib.suppress(BrokenPipeError):
        say(tally_of(out.carried + back.carried, (out.direction, back.direction), [*out.late_s, *back.late_s]))
    return 0


def _accept(listener: socket.socket, port: int, out: Line, back: Line) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection((LOOPBACK, port))
        except OSError:
            near.close()
            continue
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out.join(near, far)
        back.join(far, near)


if __name__ == "__main__":
    sys.exit(main())
