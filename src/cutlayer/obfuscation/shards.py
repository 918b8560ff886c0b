"""Safetensors files written one tensor at a time, and continued after an interruption.

The library writes a file from tensors that are all in memory. The format needs only their shapes in advance: the header is
written first, then each tensor is appended and flushed. What a killed export left behind is a prefix of the file; it is cut back
to a tensor's end and continued, with the same bytes as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.errors import StoreError
from cutlayer.models.checkpoint import INDEX, SINGLE
from cutlayer.types import DTYPE_BYTES, DtypeName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SHARD_BYTES: Final = 5_000_000_000

_FILE_DTYPES: Final[dict[DtypeName, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ALIGNMENT: Final = 8


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]


class Shard(NamedTuple):
    """One file.

    Args:
        file: its name.
        dtype: of all its tensors.
        entries: in the order in which they lie in it.
    """

    file: str
    dtype: DtypeName
    entries: tuple[Entry, ...]

    def header(self) -> bytes:
        """Everything before the first tensor."""
        described: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for entry, start, end in self._offsets():
            kind = _FILE_DTYPES[self.dtype]
            described[entry.name] = {"dtype": kind, "shape": entry.shape, "data_offsets": [start, end]}
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def ends(self) -> list[int]:
        """Where each tensor ends in the file."""
        before = len(self.header())
        return [before + end for _, _, end in self._offsets()]

    def _offsets(self) -> Iterator[tuple[Entry, int, int]]:
        start = 0
        for entry in self.entries:
            end = start + _bytes(entry, self.dtype)
            yield entry, start, end
            start = end


def plan_shards(entries: Sequence[Entry], dtype: DtypeName, most: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Distribute tensors over files of at most `most` bytes, a larger tensor getting one of its own."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        size = _bytes(entry, dtype)
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += size
    names = [SINGLE]
    if len(groups) > 1:
        names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return tuple(Shard(name, dtype, tuple(group)) for name, group in zip(names, groups, strict=True))


def index(shards: Sequence[Shard]) -> tuple[str, str] | None:
    """Name and content of the file that says which tensor is where; None for a single file."""
    if len(shards) == 1:
        return None
    places = {entry.name: shard.file for shard in shards for entry in shard.entries}
    size = sum(_bytes(entry, shard.dtype) for shard in shards for entry in shard.entries)
    return INDEX, json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2) + "\n"


def write_shard(shard: Shard, directory: Path, make: Callable[[Entry], torch.Tensor]) -> Iterator[Entry]:
    """Write a shard, or what is missing of it, yielding each tensor once it is on disk.

    Args:
        shard: the file.
        directory: where it goes.
        make: the tensor of an entry, of the shard's dtype and the entry's shape.

    Raises:
        StoreError: it cannot be written, or a file that is in the way did not come from the same export.
    """
    path = directory / shard.file
    header, ends = shard.header(), shard.ends()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "r+b") as stream:
            done = _kept(stream.seek(0, os.SEEK_END), len(header), ends)
            if done:
                stream.seek(0)
                if stream.read(len(header)) != header:
                    raise StoreError(f"{path} is of another export; remove {directory} and start again")
            else:
                stream.seek(0)
                stream.write(header)
            stream.truncate(stream.seek(ends[done - 1] if done else len(header)))
            for number, entry in enumerate(shard.entries):
                if number >= done:
                    stream.write(_raw(make(entry)))
                    stream.flush()
                    os.fsync(stream.fileno())
                yield entry
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; free some space and repeat the command") from error


def _kept(size: int, header: int, ends: list[int]) -> int:
    """How many tensors of a file of `size` bytes are complete.

    The one that ends where an unfinished file ends is made again: its length may have reached the disk before its bytes.
    """
    if size < header:
        return 0
    if ends and size == ends[-1]:
        return len(ends)
    return sum(end < size for end in ends)


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data


def _bytes(entry: Entry, dtype: DtypeName) -> int:
    return math.prod(entry.shape) * DTYPE_BYTES[dtype]
