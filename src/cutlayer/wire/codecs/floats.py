"""Values as floats of one width: exact in the compute dtype of that width, rounded to nearest in a narrower one.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cutlayer.errors import NonFiniteError
from cutlayer.wire.codecs.codec import check_whole_rows

if TYPE_CHECKING:
    import numpy.typing as npt


class FloatCodec:
    """See the module.

    The checks run in NumPy, on as few calls as will do: four times per decode step this code runs right after a model has
    swept the processor's caches, and every call then costs several times what it costs in a loop.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.precision = torch.finfo(dtype).eps / 2
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
        check_whole_rows(data, self, hidden_size)
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
