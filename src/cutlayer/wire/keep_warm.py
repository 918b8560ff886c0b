"""Pings that keep TCP's window open while nobody has anything to send.

A sender that was silent for longer than its retransmission timeout begins anew with ten packets (RFC 5681 section 4.1; Linux:
``tcp_slow_start_after_idle``), and the next message takes one to four more round trips. That timeout is the round trip and at
least 200 ms (RFC 6298, as Linux has it), so anything sent every 200 ms prevents it, in both directions: the peer answers pings.
Nothing of the size of the window has to be sent. Measured on Linux 6.18, where the window stays for as long as this goes on
(`docs/wan.md`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S: Final = 0.2


class KeepWarm:
    """Pings a connection that is silent, for a while.

    Args:
        ping: sends one.
        seconds: for how long after the last message. A ping and its answer are some 220 bytes with IP headers, 66 kB a
            minute. 0 sends none.
    """

    def __init__(self, ping: Callable[[], object], seconds: float) -> None:
        self._ping = ping
        self._seconds = seconds
        self._used = time.monotonic()
        self._ended = threading.Event()
        if seconds > 0:
            threading.Thread(target=self._run, name="keep-warm", daemon=True).start()

    def used(self) -> None:
        """A message is being sent. What was received does not count: it kept the other direction open, not this one."""
        self._used = time.monotonic()

    def end(self) -> None:
        """No more pings."""
        self._ended.set()

    def _run(self) -> None:
        last = self._used
        with contextlib.suppress(ConnectionClosed, OSError):
            while not self._ended.wait(max(last + INTERVAL_S - time.monotonic(), 0.0)):
                now = time.monotonic()
                silent = now - self._used
                if silent < INTERVAL_S:
                    last = self._used
                    continue
                last = now
                if silent < self._seconds:
                    self._ping()
