"""A tap on the client's connections: every message as the transport took it or brought it.

A server holds what it was sent and what it answered, so a tap's frames are exactly what the server holds of a session.

    tap = Tap(dialler("wss://gpu.example:8443", keys="keys/client"))
    with Client(tap) as client:
        client.generate("…").result()
    tap.frames

Footguns: the frames hold hidden states, from which prompts can be recovered; treat them as the prompts themselves. A tap sees
what passes through the transport it wraps, not what a transport adds below (TLS, WebSocket framing), nor other sockets of
this process.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.wire.transport import Connect, PeerSecurity, Transport

DEFAULT_LIMIT_BYTES: Final = 256 << 20

Direction = Literal["sent", "received"]


class Captured(msgspec.Struct, frozen=True):
    """One message, whole."""

    direction: Direction
    connection: int
    """Which of the tap's connections carried it, counted from 0."""
    at: float
    """Seconds on the monotonic clock: just before sending, just after receiving."""
    data: bytes

    def __repr__(self) -> str:
        return f"Captured({self.direction}, connection {self.connection}, <{len(self.data)} bytes>)"


class Tally(msgspec.Struct):
    """What crossed in one direction, recorded or not."""

    frames: int = 0
    bytes: int = 0


class Tap:
    """Wraps a `Connect` and records every message of every connection it opens. Usable as a `Connect` itself.

    Recording stops for good with the first message that would exceed the limit: from then on `complete` is False and
    `missed` counts what was not recorded. `sent` and `received` count everything.

    Args:
        connect: opens the real transport.
        limit_bytes: memory for recorded messages.

    Raises:
        InputError: the limit is not positive.
    """

    def __init__(self, connect: Connect, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        if limit_bytes < 1:
            raise InputError(f"a tap needs room for at least one byte, not {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.complete = True
        """Whether every message so far was recorded."""
        self.missed = Tally()
        """Messages that crossed after the limit was reached."""
        self.sent = Tally()
        self.received = Tally()
        self.connections = 0
        self._connect = connect
        self._frames: list[Captured] = []
        self._held_bytes = 0
        # A client may be aborted, and its session closed, from another thread than the one that decodes.
        self._lock = threading.Lock()

    def __call__(self) -> Transport:
        """Open a connection and listen in on it."""
        inner = self._connect()
        with self._lock:
            number = self.connections
            self.connections += 1
        return _TappedTransport(self, inner, number)

    @property
    def frames(self) -> tuple[Captured, ...]:
        """What was recorded, in order."""
        with self._lock:
            return tuple(self._frames)

    def record(self, direction: Direction, connection: int, data: bytes) -> None:
        """Take down one message."""
        with self._lock:
            tally = self.sent if direction == "sent" else self.received
            tally.frames += 1
            tally.bytes += len(data)
            self.complete = self.complete and self._held_bytes + len(data) <= self.limit_bytes
            if self.complete:
                self._frames.append(Captured(direction, connection, time.monotonic(), bytes(data)))
                self._held_bytes += len(data)
            else:
                # No gaps: a later, smaller message is left out too, so that what is held is a prefix of what crossed.
                self.missed.frames += 1
                self.missed.bytes += len(data)


class _TappedTransport:
    """A transport that tells the tap."""

    def __init__(self, tap: Tap, inner: Transport, connection: int) -> None:
        self._tap = tap
        self._inner = inner
        self._connection = connection

    def send(self, data: bytes) -> None:
        """See `Transport.send`."""
        # Before, not after: of a message whose sending failed, any part may have crossed.
        self._tap.record("sent", self._connection, data)
        self._inner.send(data)

    def recv(self, timeout_s: float | None = None) -> bytes:
        """See `Transport.recv`."""
        data = self._inner.recv(timeout_s)
        self._tap.record("received", self._connection, data)
        return data

    def close(self) -> None:
        """See `Transport.close`."""
        self._inner.close()

    def security(self) -> PeerSecurity:
        """See `Transport.security`."""
        return self._inner.security()
