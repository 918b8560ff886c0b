"""Small value types shared by all packages.

Notation used throughout the project: B batch, T tokens, D hidden size, V vocabulary, L layers, k head layers,
m tail layers; a cut is the half-open range [k, L−m) of layers the server runs.
"""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

import msgspec

from cutlayer.errors import CutError, InputError

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: Final[tuple[DtypeName, ...]] = get_args(DtypeName)
DTYPE_BYTES: Final[dict[DtypeName, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}

DEFAULT_CUT: Final = "2:-2"

_CUT = re.compile(r"(-?\d+)?:(-?\d+)?")


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The layers [start, stop) that the server runs, out of `layers`.

    Examples:
        >>> Cut.parse("2:-2", layers=30)
        Cut(start=2, stop=28, layers=30)
        >>> Cut.parse("0:30", layers=30).head_layers
        0
    """

    start: int
    stop: int
    layers: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.layers:
            raise CutError(
                f"cut {self.start}:{self.stop} of {self.layers} layers leaves the server nothing to run; "
                f"need 0 <= start < stop <= {self.layers}"
            )

    @classmethod
    def parse(cls, text: str, layers: int) -> Cut:
        """Read ``A:B`` with Python's slice rules (negatives count from the end, either side may be empty).

        Unlike a slice, a bound outside the model is an error: a silently clamped cut could hand over more layers
        than was meant.

        Raises:
            CutError: not of that form, outside the model, or empty.
        """
        match = _CUT.fullmatch(text.strip())
        if match is None:
            raise CutError(f"cut {text!r} is not of the form A:B, e.g. {DEFAULT_CUT}")
        start, stop = (
            int(part) if part else default for part, default in zip(match.groups(), (0, layers), strict=True)
        )
        for bound in (start, stop):
            if not -layers <= bound <= layers:
                raise CutError(f"cut {text!r}: {bound} is outside a model of {layers} layers")
        return cls(start + layers if start < 0 else start, stop + layers if stop < 0 else stop, layers)

    @property
    def head_layers(self) -> int:
        """k, the layers the client runs before the server."""
        return self.start

    @property
    def body_layers(self) -> int:
        """Layers the server runs."""
        return self.stop - self.start

    @property
    def tail_layers(self) -> int:
        """m, the layers the client runs after the server."""
        return self.layers - self.stop

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


class Secret:
    """Bytes that never show in a repr, a log or a traceback's locals."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret(<{len(self._value)} bytes>)"


def check_dtype(name: str) -> DtypeName:
    """Return `name` as a `DtypeName`.

    Raises:
        InputError: not one of float32, bfloat16, float16.
    """
    for known in DTYPE_NAMES:
        if name == known:
            return known
    raise InputError(f"unknown dtype {name!r}; available: {', '.join(DTYPE_NAMES)}")
