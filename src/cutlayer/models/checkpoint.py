"""Safetensors checkpoints, sharded or not, opened one named tensor at a time.

What was opened is remembered: `opened` is the evidence that a server never touched an embedding, a final norm, an
output head or a client layer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


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


def _locate(directory: Path) -> dict[str, str]:
    """Tensor name → file name."""
    index = directory / INDEX
    if index.is_file():
        return _read_index(index)
    single = directory / SINGLE
    if not single.is_file():
        raise WeightsError(f"{directory} holds neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read")
    try:
        with safe_open(single, framework="pt") as file:
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
