"""Byte patterns that must not cross: text, token ids, embedding rows and logits, in every encoding a program would likely use.

Long values are cut into overlapping windows, so that a part of a prompt is found as well as the whole. Each pattern is at least
`MIN_BYTES` long (words: five letters) and varied enough not to occur in honest floats or zero padding; what is too short or too
uniform gives no pattern.

A description says what a pattern is, never what it says.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, AnyStr, Final, NamedTuple

import msgspec
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MIN_BYTES: Final = 8
MIN_WORD: Final = 5
_TEXT_WINDOW: Final = 16
_TEXT_STRIDE: Final = 8
_ENCODED_WINDOW: Final = 18
"""Bytes, a multiple of three: base64 turns three bytes into four characters."""
_LONG_TEXT: Final = 512
_LONG_STRIDE: Final = 7
"""Coprime to three, so that long texts are still covered at every alignment of base64."""
_ID_WINDOW: Final = 4
_LONGEST_ID_WINDOW: Final = 16
_VALUE_BYTES: Final = 64

_WORD: Final = re.compile(rf"[^\W\d_]{{{MIN_WORD},}}")
_ENCODINGS: Final = ("utf-8", "utf-16-le", "utf-16-be")
_FLOATS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Needle(NamedTuple):
    """One pattern."""

    what: str
    data: bytes


def text_needles(text: str, who: str) -> Iterator[Needle]:
    """Windows and words of a text, as it is and in upper and lower case, in three encodings; windows in base64 and hex.

    Args:
        text: what must not cross.
        who: ``"the prompt"``, ``"the answer"``.
    """
    for case, variant in {"": text, ", lower case": text.lower(), ", upper case": text.upper()}.items():
        if case and variant == text:
            continue
        for encoding in _ENCODINGS:
            for window in _windows(variant, _TEXT_WINDOW, _TEXT_STRIDE):
                yield from _usable(f"text of {who} ({encoding}{case})", window.encode(encoding, "replace"), distinct=4)
            for word in sorted(set(_WORD.findall(variant))):
                yield Needle(f"a word of {who} ({encoding}{case})", word.encode(encoding, "replace"))
    data = text.encode("utf-8", "replace")
    stride = 1 if len(data) <= _LONG_TEXT else _LONG_STRIDE
    for part in _windows(data, _ENCODED_WINDOW, stride):
        if len(set(part)) < 4 or len(part) < MIN_BYTES:
            continue
        whole_groups = part[: len(part) // 3 * 3]
        yield Needle(f"text of {who} (base64)", base64.b64encode(whole_groups))
        yield Needle(f"text of {who} (base64, URL alphabet)", base64.urlsafe_b64encode(whole_groups))
        yield Needle(f"text of {who} (hex)", part.hex().encode())
        yield Needle(f"text of {who} (hex, upper case)", part.hex().upper().encode())


def id_needles(ids: Sequence[int], who: str) -> Iterator[Needle]:
    """Windows of at least four consecutive ids, as binary numbers, MessagePack, varints and decimal text."""
    for name, encode in _ID_ENCODINGS.items():
        for start in range(len(ids)):
            for stop in range(start + _ID_WINDOW, min(start + _LONGEST_ID_WINDOW, len(ids)) + 1):
                window = ids[start:stop]
                data = encode(window)
                if data is None:
                    break
                if len(data) >= MIN_BYTES and len(set(window)) >= 3:
                    yield Needle(f"token ids of {who} ({name})", data)
                    break


def embedding_needles(embedding: torch.Tensor, ids: Sequence[int]) -> Iterator[Needle]:
    """64 bytes at the start, middle and end of the embedding row of every token, in three float formats.

    Args:
        embedding: [V, D].
        ids: of prompt and answer.
    """
    for token in sorted(set(ids)):
        for name, data in _float_bytes(embedding[token].float().cpu()):
            middle = len(data) // 2 // _VALUE_BYTES * _VALUE_BYTES
            for start in sorted({0, middle, max(0, len(data) - _VALUE_BYTES)}):
                yield from _usable(f"an embedding row ({name})", data[start : start + _VALUE_BYTES], distinct=8)


def logit_needles(windows: Sequence[torch.Tensor], peaks: Sequence[int]) -> Iterator[Needle]:
    """64 bytes around the arg-max of every position's logits, in three float formats.

    Args:
        windows: logits around the arg-max, float32.
        peaks: where in its window each arg-max lies.
    """
    for window, peak in zip(windows, peaks, strict=True):
        for name, data in _float_bytes(window):
            width = len(data) // len(window)
            start = max(0, min(peak * width - _VALUE_BYTES // 2, len(data) - _VALUE_BYTES))
            yield from _usable(f"logits ({name})", data[start : start + _VALUE_BYTES], distinct=8)


def _float_bytes(values: torch.Tensor) -> Iterator[tuple[str, bytes]]:
    for name, dtype in _FLOATS.items():
        yield name, values.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


def _windows(whole: AnyStr, width: int, stride: int) -> Iterator[AnyStr]:
    """Overlapping parts, the last one flush with the end; the whole if it is no longer than one."""
    last: int = max(0, len(whole) - width)
    for start in sorted({*range(0, last, stride), last}):
        yield whole[start : start + width]


def _usable(what: str, data: bytes, distinct: int) -> Iterator[Needle]:
    if len(data) >= MIN_BYTES and len(set(data)) >= distinct:
        yield Needle(what, data)


def _binary(dtype: str) -> Callable[[Sequence[int]], bytes | None]:
    def encode(ids: Sequence[int]) -> bytes | None:
        kind = np.dtype(dtype)
        if kind.kind != "f" and max(ids) > np.iinfo(kind).max:
            return None
        return np.asarray(ids).astype(kind).tobytes()

    return encode


def _decimal(separator: str) -> Callable[[Sequence[int]], bytes | None]:
    return lambda ids: separator.join(map(str, ids)).encode()


def _msgpack(ids: Sequence[int]) -> bytes:
    return b"".join(
        map(msgspec.msgpack.encode, ids)
    )  # an array's elements; its header depends on where the array began


def _varint(ids: Sequence[int]) -> bytes:
    out = bytearray()
    for number in ids:
        rest = number
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


_ID_ENCODINGS: Final[dict[str, Callable[[Sequence[int]], bytes | None]]] = {
    **{
        f"{kind}, {order} endian": _binary(sign + code)
        for order, sign in (("little", "<"), ("big", ">"))
        for kind, code in (("16 bits", "u2"), ("32 bits", "i4"), ("64 bits", "i8"), ("float32", "f4"))
    },
    "MessagePack": _msgpack,
    "varint": _varint,
    "decimal, comma": _decimal(","),
    "decimal, comma and space": _decimal(", "),
    "decimal, space": _decimal(" "),
}
