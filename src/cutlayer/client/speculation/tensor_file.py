"""Small safetensors files that say what they are for: a kind, a version and the fingerprint of a model.

A file may come from a stranger or from a disk that failed, so everything is checked before it is used, and it replaces an older
one only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Tensors = Mapping[str, npt.NDArray[Any]]

_LENGTH: Final = 8
"""Bytes before the header, which say how long it is."""


class Purpose(msgspec.Struct, frozen=True):
    """What a file is for."""

    kind: str
    version: str
    fingerprint: str
    """Of the model."""


class _Header(msgspec.Struct):
    purpose: dict[str, str] = msgspec.field(name="__metadata__")


def pack(tensors: Tensors, purpose: Purpose) -> bytes:
    """The content of a file."""
    return bytes(save(dict(tensors), metadata=msgspec.structs.asdict(purpose)))


def unpack(content: bytes, purpose: Purpose, place: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file.

    Args:
        content: of the file.
        purpose: what it has to be for.
        place: where it is from, for messages.

    Raises:
        InputError: it is damaged or for something else.
    """
    try:
        tensors: dict[str, npt.NDArray[Any]] = load(content)
        length = int.from_bytes(content[:_LENGTH], "little")
        found = msgspec.json.decode(content[_LENGTH : _LENGTH + length], type=_Header).purpose
    except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
        raise InputError(f"{place} is damaged or no file of ours: {error}") from None
    for key, wanted in msgspec.structs.asdict(purpose).items():
        if found.get(key) != wanted:
            raise InputError(f"{place} has {key} {found.get(key)!r}, expected {wanted!r}")
    return tensors


def require(tensors: Tensors, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...], place: Path) -> None:
    """Check one tensor.

    Args:
        tensors: of the file.
        name: of the tensor.
        dtypes: those it may have.
        shape: its sizes, None for any.
        place: where it is from, for messages.

    Raises:
        InputError: it is missing, or of another dtype or shape.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype.name not in dtypes or tensor.ndim != len(shape):
        raise InputError(f"{place} holds no tensor {name} of {len(shape)} dimensions in {' or '.join(dtypes)}")
    if any(wanted not in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)):
        raise InputError(f"{place}: {name} has shape {list(tensor.shape)}, which does not fit the rest")


def replace(file: Path, content: bytes, mode: int) -> None:
    """Write `content` in place of `file`, at once or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        # Made with mode 0600 under a name nobody can know beforehand.
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error
