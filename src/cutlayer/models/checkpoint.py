"""Safetensors checkpoints, sharded or not, opened one named tensor at a time.

What was opened is remembered: `opened` is the evidence that a server never touched an embedding, a final norm, an
output head or a client layer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from safetensors import SafetensorError, safe_open

from cutlayer.errors import ModelNotFoundError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


class TensorHeader(NamedTuple):
    """What a safetensors header says of one tensor; `dtype` in its spelling, e.g. ``BF16``."""

    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """Named tensors of a model directory.

    Args:
        directory: holds ``model.safetensors`` or ``model.safetensors.index.json`` and its shards.

    Raises:
        WeightsError: neither is there, or they are malformed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: list[str] = []
        self._file_of = _locate(directory)

    def names(self) -> list[str]:
        """Names of all tensors, without opening any."""
        return sorted(self._file_of)

    def headers(self) -> dict[str, TensorHeader]:
        """Dtype and shape of all tensors, in order of name, from the files' headers alone: none is opened.

        Raises:
            WeightsError: a file cannot be read or lacks a tensor.
        """
        found: dict[str, TensorHeader] = {}
        for file in sorted(set(self._file_of.values())):
            names = [name for name, holder in self._file_of.items() if holder == file]
            try:
                with safe_open(self.directory / file, framework="np") as shard:  # "np" does not import torch
                    for name in names:
                        header = shard.get_slice(name)
                        found[name] = TensorHeader(str(header.get_dtype()), tuple(header.get_shape()))
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"cannot read the header of {self.directory / file}: {error}") from error
        return dict(sorted(found.items()))

    def read(self, name: str) -> torch.Tensor:
        """Open one tensor.

        Raises:
            WeightsError: it cannot be read.
        """
        file = self.directory / self._file_of[name]
        try:
            with safe_open(file, framework="pt") as shard:
                tensor: torch.Tensor = shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read tensor {name!r} from {file}: {error}") from error
        self.opened.append(name)
        return tensor


def read_settings(directory: Path) -> dict[str, Any]:
    """``config.json`` as it is, without building a model configuration from it.

    Raises:
        ModelNotFoundError: it is missing, or no JSON object.
    """
    file = directory / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"cannot read {file}: {error}; a model directory has config.json") from error
    if not isinstance(settings, dict):
        raise ModelNotFoundError(f"{file} holds a {type(settings).__name__}, not an object; it is no model config")
    return settings


def _locate(directory: Path) -> dict[str, str]:
    """Tensor name → file name."""
    index = directory / INDEX
    if index.is_file():
        return _read_index(index)
    single = directory / SINGLE
    if not single.is_file():
        raise WeightsError(f"{directory} holds neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read")
    try:
        with safe_open(single, framework="np") as file:  # names only; "np" does not import torch
            return dict.fromkeys(file.keys(), SINGLE)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{single} is not a safetensors file: {error}") from error


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        located = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no safetensors index: {error!r}") from error
    for file in set(located.values()):
        # An index may come from a stranger: a shard name must not lead out of the directory.
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise WeightsError(f"{index} names {file!r}, which is not a .safetensors file beside it")
        if not (index.parent / file).is_file():
            raise WeightsError(f"{index} names {file}, which is missing; fetch the shard and try again")
    return located
