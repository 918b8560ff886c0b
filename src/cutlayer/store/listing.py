"""What is pulled on this machine, read from configs and tensor headers without loading anything."""

from __future__ import annotations

import math

import msgspec

from cutlayer import config
from cutlayer.errors import StoreError
from cutlayer.models.checkpoint import Checkpoint, read_settings
from cutlayer.models.locate import pulled_models
from cutlayer.models.manifest import read_manifest


class ModelInfo(msgspec.Struct, frozen=True):
    """One pulled model.

    Args:
        name: what to call it where a MODEL is asked for.
        path: its directory.
        model_type: its family, in transformers' spelling.
        layers: L.
        hidden_size: D.
        parameters: values in the checkpoint; a tied output head counts once.
        bytes: of all its files.
        source: package and version it came from.
    """

    name: str
    path: str
    model_type: str
    layers: int
    hidden_size: int
    parameters: int
    bytes: int
    source: str


def installed() -> list[ModelInfo]:
    """The complete models in this machine's cache, by name.

    Raises:
        StoreError: one of them is unreadable; the message says which.
    """
    return [_describe(name) for name in pulled_models()]


def _describe(name: str) -> ModelInfo:
    directory = config.models_directory() / name
    settings, manifest = read_settings(directory), read_manifest(directory)
    if manifest is None:
        raise StoreError(f"{directory} vanished while it was read; try again")
    try:
        layers, hidden = int(settings["num_hidden_layers"]), int(settings["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{directory / 'config.json'} lacks {error}; remove {directory} and pull it again") from error
    return ModelInfo(
        name=name,
        path=str(directory),
        model_type=str(settings.get("model_type", "unknown")),
        layers=layers,
        hidden_size=hidden,
        parameters=sum(math.prod(header.shape) for header in Checkpoint(directory).headers().values()),
        bytes=sum(manifest.files.values()),
        source=manifest.source,
    )
