"""Captured bytes as protocol messages, and whether a message is nothing but what the protocol says.

A frame is in order when it decodes, has one spelling only (encoding its header again gives the same bytes, so not even the
choice among MessagePack's several forms of a number is left to carry something), travels in its direction, and its payload is
exactly positions × row bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.errors import FrameError
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.tap import Captured

_CLIENT_SENDS: Final = (frames.Open, frames.Resume, frames.Step, frames.Close, frames.Info)


class Message(NamedTuple):
    """A captured frame, taken apart."""

    number: int
    """Its place in the tap, from 0."""
    captured: Captured
    header: frames.Header | None
    """None when it did not decode."""
    payload: memoryview
    fault: str | None
    """What is wrong with it, or None."""

    @property
    def label(self) -> str:
        """For people: ``frame 7 (STEP, sent)``."""
        kind = type(self.header).__name__.upper() if self.header is not None else "unreadable"
        return f"frame {self.number} ({kind}, {self.captured.direction})"


def take_apart(captured: Sequence[Captured], row_bytes: int) -> list[Message]:
    """Decode and check every frame of a session.

    Args:
        captured: in order, from the beginning of the session.
        row_bytes: encoded bytes per position.
    """
    silent: set[tuple[int, int]] = set()
    messages = []
    for number, item in enumerate(captured):
        try:
            frame = frames.decode(item.data)
        except FrameError as error:
            messages.append(Message(number, item, None, memoryview(item.data), str(error)))
            continue
        header = frame.header
        if isinstance(header, frames.Step):
            step = (item.connection, header.sequence)  # sequence numbers come around again
            silent = silent | {step} if header.flags & frames.NO_REPLY else silent - {step}
        fault = _fault(item, frame, row_bytes, silent)
        messages.append(Message(number, item, header, frame.payload, fault))
    return messages


def _fault(item: Captured, frame: frames.Frame, row_bytes: int, silent: set[tuple[int, int]]) -> str | None:
    header, size = frame.header, len(frame.payload)
    if frames.encode(header, frame.payload) != item.data:
        return "its header is not in the one spelling this protocol uses"
    # ERROR counts as the server's: a client has no reason to send one, and it carries free text.
    if isinstance(header, _CLIENT_SENDS) != (item.direction == "sent"):
        return "it travels in the wrong direction"
    if isinstance(header, frames.Step | frames.Result):
        unanswered = isinstance(header, frames.Result) and (item.connection, header.sequence) in silent
        expected = 0 if unanswered else header.count * row_bytes
        if size != expected:
            return f"its payload has {size} bytes where {header.count} positions take {expected}"
    return None
