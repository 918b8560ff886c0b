"""What a wide-area link does to packets, in numbers."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from cutlayer.errors import InputError

_LONGEST_RTT_MS: Final = 10_000.0
_FASTEST_MBIT_S: Final = 10_000.0
_LARGEST_QUEUE_KB: Final = 1_000_000.0
_SMALLEST_QUEUE_BYTES: Final = 150_000
"""A hundred full packets: less would drop the bursts that every TCP sends."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delay, rate, jitter and loss of a link, the same in both directions.

    Args:
        rtt_ms: round trip of an empty link; each direction takes half of it.
        mbit_s: rate of each direction in 10⁶ bit/s, IP headers included; 0 sets no limit.
        jitter_ms: each packet's delay is uniform within ± this of half the round trip. Packets that would overtake wait for
            the one before, unless `reorder`, so a dense stream sees more than half the round trip.
        loss: probability that a packet vanishes, for each on its own.
        queue_kb: bytes in 10³ that wait for the rate before packets are dropped; None is what the link carries in one round
            trip, and at least 150. Without a rate there is no queue.
        reorder: whether jitter may change the order of packets.
        seed: of jitter and loss; None draws anew.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> Shape(rtt_ms=80, mbit_s=100).queue_bytes
        1000000
        >>> Shape(rtt_ms=10, jitter_ms=6)
        Traceback (most recent call last):
        ...
        cutlayer.errors.InputError: jitter of 6 ms is more than the 5 ms that a packet is under way
    """

    rtt_ms: float
    mbit_s: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_kb: float | None = None
    reorder: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        _within("round trip", self.rtt_ms, 0, _LONGEST_RTT_MS, "ms")
        _within("rate", self.mbit_s, 0, _FASTEST_MBIT_S, "Mbit/s")
        _within("jitter", self.jitter_ms, 0, _LONGEST_RTT_MS, "ms")
        _within("loss", self.loss, 0, 1, "of all packets")
        if self.queue_kb is not None:
            _within("queue", self.queue_kb, 2, _LARGEST_QUEUE_KB, "kB")
        if 2 * self.jitter_ms > self.rtt_ms:
            raise InputError(
                f"jitter of {self.jitter_ms:g} ms is more than the {self.rtt_ms / 2:g} ms that a packet is under way"
            )

    @property
    def bytes_per_s(self) -> float:
        """Rate of each direction; infinite without a limit."""
        return self.mbit_s * 1e6 / 8 or math.inf

    @property
    def queue_bytes(self) -> int:
        """Bytes that may wait for the rate."""
        if self.queue_kb is not None:
            return round(self.queue_kb * 1e3)
        return max(round(self.mbit_s * 1e6 / 8 * self.rtt_ms / 1e3), _SMALLEST_QUEUE_BYTES)

    def __str__(self) -> str:
        parts = [
            f"{self.rtt_ms:g} ms round trip",
            f"{self.mbit_s:g} Mbit/s each way" if self.mbit_s else "no rate limit",
        ]
        if self.jitter_ms:
            parts.append(f"±{self.jitter_ms:g} ms jitter")
        if self.loss:
            parts.append(f"{self.loss:.2%} loss")
        return ", ".join(parts)


def _within(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} of {value:g} {unit}; give {low:g} to {high:g}")
