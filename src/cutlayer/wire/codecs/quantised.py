"""Integers of 8 or 4 bits with one scale per group of neighbouring channels; the largest channels of a row travel apart.

Residual streams have a few channels tens to thousands of times larger than the rest, and a first position whose length is
nearly all one channel (SmolLM2-135M after 28 layers: one value of 22,600 among a median of 10). One scale over such a channel
rounds its neighbours away: without the eight channels kept, int8 moves that model's next-token distribution twenty times as far.
A row keeps its own largest eight, for which those are differs between the two directions, between positions and between models.

Layout of a row, little endian, no padding between:

    G × bf16     scales, one per group of g channels; the last group is filled up with zeros
    8 × u16      which channels are kept, ascending (all of them where D < 8)
    8 × bf16     their values, rounded to nearest
    levels       signed bytes, G·g of them; or two to a byte, offset by 8, the even channel in the low four bits

A channel is its kept value, or else level × scale. The scale is negative where the group's value of largest magnitude is
positive: that value always takes the lowest level, −2^(b−1), of which there is one more than on the other side. Rounding is to
the nearest level: the error is at most half a scale, and a whole one for values within half a level of that value's opposite.

Notation: T positions, D hidden size, G groups, g channels per group, b bits, K kept channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cutlayer.errors import FrameError, InputError, NonFiniteError
from cutlayer.wire.codecs.codec import check_whole_rows

if TYPE_CHECKING:
    import numpy.typing as npt

KEPT: Final = 8
"""K. With 4, int4's divergence is 1.4 times as large; 16 would gain about as much again for 32 bytes more."""

_LARGEST: Final = 0x7F7F
"""Bits of the largest bfloat16. Bits of magnitudes order as integers do, which spares all arithmetic on what may be no
number."""
_MAGNITUDE: Final = 0x7FFF
_WIDE: Final = np.uint32(16)
"""Bits by which float32 is wider than bfloat16."""
_CHANNELS: Final = 1 << 16


class QuantisedCodec:
    """See the module.

    Args:
        name: as registered.
        bits: b, 8 or 4.
        group: g.
    """

    def __init__(self, name: str, bits: int, group: int) -> None:
        self.name = name
        self._bits = bits
        self._group = group
        self._half = 1 << (bits - 1)
        # Every channel half a level off, in groups that hold nothing but the value the scale was made for
        self.precision = group**0.5 / (2 * self._half) * (1 + 2.0**-7)
        self._steepest = _LARGEST - ((bits - 1) << 7)
        """Bits of the largest scale whose every level is finite."""

    def row_bytes(self, hidden_size: int) -> int:
        """2·G + 4·K + G·g·b/8."""
        return self._layout(hidden_size).itemsize

    def encode(self, hidden: torch.Tensor) -> bytes:
        """See `Codec.encode`."""
        values = hidden.detach().to(device="cpu", dtype=torch.float32).numpy()  # [T, D]
        positions, size = values.shape
        rows = np.empty(positions, self._layout(size))
        groups, kept = rows["scales"].shape[1], rows["channels"].shape[1]
        flat = np.zeros((positions, groups * self._group), np.float32)  # [T, G·g]
        flat[:, :size] = values
        magnitudes = flat.view(np.uint32) & np.uint32(0x7FFFFFFF)  # [T, G·g]
        if magnitudes.max(initial=0) > _LARGEST << _WIDE:
            raise NonFiniteError(
                f"hidden states hold a value that {self.name} cannot carry (NaN, infinity, or beyond 3.39e+38); choose fp32"
            )
        channels = magnitudes[:, :size].argpartition(size - kept)[:, size - kept :]  # [T, K]
        channels.sort()
        at = np.arange(positions)[:, None], channels
        rows["channels"] = channels
        rows["kept"] = _nearest(flat[at])
        flat[at] = magnitudes[at] = 0
        grouped = flat.reshape(positions, groups, self._group)  # [T, G, g]
        largest = magnitudes.reshape(grouped.shape).argmax(-1, keepdims=True)  # [T, G, 1]
        extreme = np.take_along_axis(grouped, largest, -1)  # [T, G, 1]
        # Away from zero, or the extreme would fall below the lowest level; from +0, that no scale be −0
        scales = ((0.0 - extreme / self._half).view(np.uint32) + np.uint32(0xFFFF)) >> _WIDE
        rows["scales"] = scales[..., 0]
        steps = _floats(scales)
        steps[steps == 0] = 1
        levels = np.rint(grouped / steps).clip(-self._half, self._half - 1).astype(np.int8)  # [T, G, g]
        rows["levels"] = _pack(levels.reshape(flat.shape), self._bits)
        return rows.tobytes()

    def decode(self, data: bytes | memoryview, hidden_size: int) -> torch.Tensor:
        """See `Codec.decode`; float32."""
        check_whole_rows(data, self, hidden_size)
        rows = np.frombuffer(data, self._layout(hidden_size))
        scales, kept = rows["scales"], rows["kept"]  # [T, G], [T, K]
        if (scales & _MAGNITUDE).max() > self._steepest or (kept & _MAGNITUDE).max() > _LARGEST:
            raise NonFiniteError("payload holds NaN, infinity, or a scale that leads there")
        channels = rows["channels"].astype(np.intp)  # [T, K]
        if channels[:, -1].max() >= hidden_size or (channels[:, 1:] <= channels[:, :-1]).any():
            raise FrameError(f"kept channels are not ascending below {hidden_size}")
        levels = _unpack(rows["levels"], self._bits).reshape(*scales.shape, self._group)  # [T, G, g]
        values = levels * _floats(scales)[..., None]
        values = np.ascontiguousarray(values.reshape(len(rows), -1)[:, :hidden_size])  # [T, D]
        values[np.arange(len(rows))[:, None], channels] = _floats(kept)
        return torch.from_numpy(values)

    def _layout(self, hidden_size: int) -> np.dtype[np.void]:
        if hidden_size > _CHANNELS:
            raise InputError(f"{self.name} carries hidden states of at most {_CHANNELS} channels, not {hidden_size}")
        return _layout(hidden_size, self._bits, self._group)


@lru_cache(maxsize=16)
def _layout(hidden_size: int, bits: int, group: int) -> np.dtype[np.void]:
    """A row."""
    groups = -(-hidden_size // group)
    kept = min(KEPT, hidden_size)
    levels = ("u1", groups * group // 2) if bits == 4 else ("i1", groups * group)
    return np.dtype(
        [("scales", "<u2", (groups,)), ("channels", "<u2", (kept,)), ("kept", "<u2", (kept,)), ("levels", *levels)]
    )


def _floats(bits: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.float32]:
    """Of the bits of bfloat16."""
    return (bits.astype(np.uint32) << _WIDE).view(np.float32)


def _nearest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Bits of the nearest bfloat16, ties to even; of values that have one."""
    bits = values.view(np.uint32)
    return (bits + np.uint32(0x7FFF) + ((bits >> _WIDE) & np.uint32(1))) >> _WIDE


def _pack(levels: npt.NDArray[np.int8], bits: int) -> npt.NDArray[Any]:
    """Levels [T, G·g] as they travel."""
    if bits == 8:
        return levels
    offset = (levels + np.int8(8)).view(np.uint8)
    return offset[:, ::2] | offset[:, 1::2] << 4


def _unpack(packed: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float32]:
    """The reverse of `_pack`, as float32."""
    if bits == 8:
        return packed.astype(np.float32)
    levels = np.empty((len(packed), 2 * packed.shape[1]), np.float32)
    levels[:, ::2], levels[:, 1::2] = packed & 15, packed >> 4
    return levels - 8


INT8: Final = QuantisedCodec("int8", bits=8, group=64)
INT4: Final = QuantisedCodec("int4", bits=4, group=32)
