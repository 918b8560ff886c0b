"""How hidden states become bytes. One codec per name; all have a fixed number of bytes per position, so that a frame's
length says nothing beyond the number of positions.

A name selects a codec whole, with no options: what a peer writes is looked up and never interpreted. Rounding is no defence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.registry import Registry
from cutlayer.wire.codecs.codec import Codec
from cutlayer.wire.codecs.floats import BF16, FP16, FP32, FloatCodec

if TYPE_CHECKING:
    from cutlayer.types import DtypeName

__all__ = ["BF16", "CODECS", "FP16", "FP32", "LOSSLESS_FOR", "Codec", "FloatCodec"]

CODECS: Final[Registry[Codec]] = Registry(
    "codecs",
    Codec,  # type: ignore[type-abstract]
    {
        "fp32": f"{__name__}.floats:FP32",
        "bf16": f"{__name__}.floats:BF16",
        "fp16": f"{__name__}.floats:FP16",
        "int8": f"{__name__}.quantised:INT8",
        "int4": f"{__name__}.quantised:INT4",
    },
)

LOSSLESS_FOR: Final[dict[DtypeName, str]] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The codec that carries a compute dtype without rounding."""
