"""What a codec is.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cutlayer.errors import FrameError

if TYPE_CHECKING:
    import torch

if sys.byteorder != "little":  # the wire is little endian and tensors are sent as they lie in memory
    raise ImportError("cutlayer's wire codecs need a little-endian machine")


@runtime_checkable
class Codec(Protocol):
    """Hidden states ↔ bytes. A row is encoded by itself: its bytes depend on no other row of the step."""

    name: str

    precision: float
    """Largest ‖decoded row − row‖ / ‖row‖, of rows whose values are normal numbers of the format."""

    def row_bytes(self, hidden_size: int) -> int:
        """Bytes one position takes, whatever its values.

        Raises:
            InputError: the codec cannot carry hidden states of this size.
        """
        ...

    def encode(self, hidden: torch.Tensor) -> bytes:
        """Hidden states [T, D] of any float dtype and device → T × `row_bytes` bytes.

        Raises:
            NonFiniteError: a value is not finite, or too large for the codec.
        """
        ...

    def decode(self, data: bytes | memoryview, hidden_size: int) -> torch.Tensor:
        """Bytes → hidden states [T, D] on the CPU, in the codec's dtype.

        Raises:
            FrameError: not a whole number of rows, or no rows of this codec.
            NonFiniteError: a value is not finite.
        """
        ...


def check_whole_rows(data: bytes | memoryview, codec: Codec, hidden_size: int) -> None:
    """Check a payload's length.

    Raises:
        FrameError: it is empty, or no whole number of rows.
    """
    row = codec.row_bytes(hidden_size)
    if not len(data) or len(data) % row:
        raise FrameError(
            f"payload of {len(data)} bytes is no whole number of {row}-byte rows ({codec.name}, hidden size {hidden_size})"
        )
