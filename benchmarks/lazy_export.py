"""Exports that are not written: tensors made when an attack reads them. And bases that differ from what is published."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig

from cutlayer.attacks.keycut.weights import Weights
from cutlayer.models.checkpoint import Checkpoint, TensorHeader
from cutlayer.obfuscation.config_rewrite import export_config
from cutlayer.obfuscation.families import family_of
from cutlayer.obfuscation.keys import OwnerKey
from cutlayer.obfuscation.transform import Transform

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""Name and tensor → the tensor in its place."""


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As it is."""
    return tensor


class ChangedBase(Checkpoint):
    """A checkpoint whose tensors are changed when they are read: what an owner obfuscates who changed a public model before."""

    def __init__(self, directory: Path, change: Change) -> None:
        super().__init__(directory)
        self._change = change

    def read(self, name: str) -> torch.Tensor:
        """The changed tensor."""
        return self._change(name, super().read(name))


class _Made:
    """Tensors of an export, kept once they are made."""

    def __init__(self, transform: Transform, after: Change) -> None:
        self._transform, self._after = transform, after
        self._places = {place.exported: place for place in transform.places}
        self._kept: dict[str, torch.Tensor] = {}

    def headers(self) -> dict[str, TensorHeader]:
        return {name: TensorHeader("F32", self._transform.shape(place)) for name, place in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        if name not in self._kept:
            self._kept[name] = self._after(name, self._transform.make(self._places[name]))
        return self._kept[name]


def lazy_export(base: Path, key: OwnerKey, before: Change = unchanged, after: Change = unchanged) -> Weights:
    """What a host would get.

    Args:
        base: public model directory.
        key: of the export.
        before: change of the base, e.g. a fine-tuning.
        after: change of the export, e.g. quantisation.
    """
    config, family = family_of(base)
    transform = Transform(ChangedBase(base, before), config, family, key)
    rewritten = export_config(config, key, key.tau(), transform.kappa)
    kind = rewritten.pop("model_type")
    return Weights(AutoConfig.for_model(kind, **rewritten), _Made(transform, after))


def upload_bytes(base: Path, key: OwnerKey) -> int:
    """Of the tensors of an export in float32; an untied head is one more than the base has."""
    config, family = family_of(base)
    transform = Transform(ChangedBase(base, unchanged), config, family, key)
    return sum(4 * math.prod(transform.shape(place)) for place in transform.places)


def rounded(bits: int, group: int = 64) -> Change:
    """Symmetric round-to-nearest in groups of consecutive values of a row, as the simplest quantisers do; norms are left."""
    top = 2 ** (bits - 1) - 1

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        groups = tensor.float().reshape(-1, group if tensor.shape[1] % group == 0 else tensor.shape[1])
        step = groups.abs().amax(1, keepdim=True).clamp_min(1e-30) / top
        nearest: torch.Tensor = torch.round(groups / step) * step
        return nearest.reshape(tensor.shape)

    return change
