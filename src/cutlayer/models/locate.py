"""From the MODEL a user names to a directory of safetensors, and what tells two such directories apart.

    smollm2-135m            a model pulled into this machine's cache
    ./models/mine           a directory with config.json and *.safetensors
    hf:ORG/NAME[@REVISION]  a repository of the Hugging Face hub, fetched into the hub's own cache

Footgun: a pulled model wins over a directory of the same name; write ``./NAME`` for the directory.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Final

from cutlayer import config
from cutlayer.errors import ModelNotFoundError
from cutlayer.models.checkpoint import Checkpoint, read_settings
from cutlayer.models.hub import HUB_PREFIX, config_from_hub, from_hub
from cutlayer.models.manifest import read_manifest

FINGERPRINT_LENGTH: Final = 32

_PULLED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What loading a model writes into its config without changing the model.
_INCIDENTAL: Final = ("transformers_version", "_name_or_path", "_model_name_or_path")


def locate(name: str) -> Path:
    """Return the directory of the model called `name`, fetching it if it is one of the hub.

    Raises:
        InputError: ``hf:`` is not followed by ORG/NAME.
        ModelNotFoundError: nothing by that name; the message says what there is and how to get more.
        DownloadError: the hub could not be reached or answered badly.
    """
    if name.startswith(HUB_PREFIX):
        return from_hub(name)
    if _PULLED.fullmatch(name):
        pulled = config.models_directory() / name
        manifest = read_manifest(pulled)
        if manifest is not None and manifest.holds(pulled):
            return pulled
    directory = Path(name).expanduser()
    if not directory.is_dir():
        raise ModelNotFoundError(_not_found(name))
    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(
            f"{directory} holds no config.json; a model directory has config.json and *.safetensors"
        )
    return directory


def locate_config(name: str) -> Path:
    """As `locate`, for readers of ``config.json`` alone: no weights are fetched from the hub."""
    return config_from_hub(name) if name.startswith(HUB_PREFIX) else locate(name)


def pulled_models() -> list[str]:
    """Names of the complete models in this machine's cache, sorted."""
    root = config.models_directory()
    if not root.is_dir():
        return []
    found = []
    for directory in root.iterdir():
        manifest = read_manifest(directory) if _PULLED.fullmatch(directory.name) else None
        if manifest is not None and manifest.holds(directory):
            found.append(directory.name)
    return sorted(found)


def fingerprint(directory: Path) -> str:
    """Digest by which two machines notice that they do not hold the same model.

    Covers the config, the name, shape and dtype of every tensor, and the digest of what a pulled model was converted
    from. It reads headers only, so two fine-tunings of one model that were not pulled share a fingerprint: this finds
    mistakes, not manipulation.

    Raises:
        ModelNotFoundError: no readable ``config.json``.
        WeightsError: the checkpoint is incomplete or unreadable.
    """
    settings = read_settings(directory)
    for key in _INCIDENTAL:
        settings.pop(key, None)
    manifest = read_manifest(directory)
    described = {
        "config": settings,
        "tensors": Checkpoint(directory).headers(),
        "source_sha256": manifest.source_sha256 if manifest else None,
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def _not_found(name: str) -> str:
    here = ", ".join(pulled_models()) or "none"
    return (
        f"no model {name!r}: neither pulled nor a directory; pulled models: {here}; "
        f"fetch one with `cutlayer pull NAME`, or give a directory or {HUB_PREFIX}ORG/NAME"
    )
