"""What a link's processes say to their parent: one JSON object a line, on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.netsim.direction import Direction


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The link is up."""

    far: str
    """Address of the far side."""
    device: str
    """Name of the TUN device on either side."""


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """A proxy takes connections."""

    port: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The link cannot be made."""

    reason: str


class Tally(msgspec.Struct, frozen=True, tag="tally"):
    """What a link did, counted by whatever carried its packets (a proxy: pieces of streams)."""

    carried: int
    lost: int
    """By the shape's loss."""
    overflowed: int
    """Dropped because the queue was full."""
    late_ms_p50: float | None
    """By how much packets arrived later than the shape has it; None if none was carried."""
    late_ms_p99: float | None


Message = Ready | Listening | Failed | Tally


def say(message: Message) -> None:
    """Write a line."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def tally_of(carried: int, directions: Sequence[Direction], late_s: Sequence[float]) -> Tally:
    """Put counts together.

    Args:
        carried: packets delivered or on their way.
        directions: both.
        late_s: how late packets were, s.
    """
    ordered = sorted(late_s)

    def quantile(q: float) -> float | None:
        return round(ordered[int(q * (len(ordered) - 1))] * 1e3, 4) if ordered else None

    return Tally(
        carried=carried,
        lost=sum(direction.lost for direction in directions),
        overflowed=sum(direction.overflowed for direction in directions),
        late_ms_p50=quantile(0.5),
        late_ms_p99=quantile(0.99),
    )
