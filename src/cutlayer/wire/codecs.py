"""How hidden states become bytes. One codec per name; all have a fixed number of bytes per position, so that a frame's
length says nothing beyond the number of positions.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import torch

from cutlayer.errors import FrameError, NonFiniteError
from cutlayer.registry import Registry

if TYPE_CHECKING:
    import numpy.typing as npt

    from cutlayer.types import DtypeName

if sys.byteorder != "little":  # the wire is little endian and tensors are sent as they lie in memory
    raise ImportError("cutlayer's wire codecs need a little-endian machine")


@runtime_checkable
class Codec(Protocol):
    """Hidden states ↔ bytes."""

    name: str

    def row_bytes(self, hidden_size: int) -> int:
        """Bytes one position takes."""
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
            FrameError: not a whole number of rows.
            NonFiniteError: a value is not finite.
        """
        ...


class FloatCodec:
    """Values as floats of one width.

    The checks run in NumPy, on as few calls as will do: four times per decode step this code runs right after a model has
    swept the processor's caches, and every call then costs several times what it costs in a loop.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self._dtype = dtype
        # NumPy has no bfloat16: its bits travel, and are checked, as those of an integer
        self._storage = torch.int16 if dtype is torch.bfloat16 else dtype
        self._stored = np.dtype({torch.float32: "<f4", torch.float16: "<f2", torch.int16: "<i2"}[self._storage])

    def row_bytes(self, hidden_size: int) -> int:
        """D × bytes of the dtype."""
        return hidden_size * self._dtype.itemsize

    def encode(self, hidden: torch.Tensor) -> bytes:
        """See `Codec.encode`."""
        if hidden.dtype is not self._dtype or hidden.device.type != "cpu" or hidden.requires_grad:
            hidden = hidden.detach().to(device="cpu", dtype=self._dtype)
        array = (hidden if self._storage is self._dtype else hidden.view(self._storage)).numpy()  # [T, D]
        if not _all_finite(array):
            raise NonFiniteError(
                f"hidden states hold a value that {self.name} cannot carry (NaN, infinity, or beyond "
                f"{torch.finfo(self._dtype).max:.3g}); choose a wider codec"
            )
        return array.tobytes()

    def decode(self, data: bytes | memoryview, hidden_size: int) -> torch.Tensor:
        """See `Codec.decode`."""
        if not len(data) or len(data) % self.row_bytes(hidden_size):
            raise FrameError(
                f"payload of {len(data)} bytes is no whole number of {self.row_bytes(hidden_size)}-byte rows "
                f"({self.name}, hidden size {hidden_size})"
            )
        array = np.frombuffer(data, self._stored)
        if not _all_finite(array):
            raise NonFiniteError("payload holds NaN or infinity")
        # A copy: torch wants writable memory, and the tensor must not alias the transport's buffer
        hidden = torch.from_numpy(array.reshape(-1, hidden_size).copy())  # [T, D]
        return hidden if self._storage is self._dtype else hidden.view(self._dtype)


_BF16_EXPONENT: Final = np.int16(0x7F80)


def _all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether every value is finite; integers are the bits of bfloat16."""
    if array.dtype.kind == "i":
        return not bool(((array & _BF16_EXPONENT) == _BF16_EXPONENT).any())
    return bool(np.isfinite(array).all())


FP32: Final = FloatCodec("fp32", torch.float32)
BF16: Final = FloatCodec("bf16", torch.bfloat16)
FP16: Final = FloatCodec("fp16", torch.float16)

CODECS: Final[Registry[Codec]] = Registry(
    "codecs",
    Codec,  # type: ignore[type-abstract]
    {name: f"{__name__}:{name.upper()}" for name in ("fp32", "bf16", "fp16")},
)

LOSSLESS_FOR: Final[dict[DtypeName, str]] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The codec that carries a compute dtype without rounding."""
