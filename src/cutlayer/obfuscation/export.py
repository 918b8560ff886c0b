"""An obfuscated checkpoint, from a base and an owner's key.

The directory appears under its name whole or not at all. Until then it is built beside it, in ``.NAME.KEYID.partial``; the same
call continues what is there, with the same bytes as an export that was never interrupted. Another key has another building
place, so parts of two exports never mix.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError, KeyFileError, StoreError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.obfuscation.base_digest import base_digest
from cutlayer.obfuscation.config_rewrite import export_config, export_generation_config
from cutlayer.obfuscation.dummy_tokenizer import tokenizer_files
from cutlayer.obfuscation.families import check_mode, family_of
from cutlayer.obfuscation.marker import MARKER, Marker, write_marker
from cutlayer.obfuscation.shards import SHARD_BYTES, Entry, index, plan_shards, write_shard
from cutlayer.obfuscation.stop_ids import GENERATION_CONFIG
from cutlayer.obfuscation.transform import Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig

    from cutlayer.obfuscation.keys import OwnerKey

    Progress = Callable[[int, int], None]

_TOKENIZER_NAMES: Final = {"bos_token_id": "bos_token", "eos_token_id": "eos_token", "pad_token_id": "pad_token"}


def export(
    base: Path, target: Path, key: OwnerKey, progress: Progress | None = None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the obfuscated checkpoint.

    Args:
        base: model directory.
        target: directory to appear.
        key: from `create_owner_key`, for this base.
        progress: called with (tensors done, tensors in all).
        shard_bytes: no file gets larger, unless a single tensor is.

    Raises:
        InputError: `target` exists.
        KeyFileError: the key was made for another base.
        UnsupportedModelError, ModelNotFoundError, WeightsError: the base is unsupported, unreadable or not finite.
        StoreError: something cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists and is never overwritten; choose another directory or remove it yourself")
    config, family = family_of(base)
    check_mode(config.model_type, family, key.settings.mode)
    if base_digest(base) != key.identity.weights:
        raise KeyFileError(
            f"key {key.identity.key_id} was made for other weights than those in {base}; create a new one"
        )
    transform = Transform(Checkpoint(base), config, family, key)
    places = {place.exported: place for place in transform.places}
    entries = [Entry(name, transform.shape(place)) for name, place in places.items()]
    shards = plan_shards(entries, key.settings.dtype, shard_bytes)
    report = progress or (lambda done, total: None)
    building = building_place(target, key)
    try:
        building.mkdir(parents=True, exist_ok=True)
        with _alone(building):
            done = 0
            for shard in shards:
                for _ in write_shard(shard, building, lambda entry: transform.make(places[entry.name])):
                    done += 1
                    report(done, len(entries))
            located = index(shards)
            if located is not None:
                (building / located[0]).write_text(located[1], encoding="utf-8")
            _write_settings(base, config, key, transform.kappa, building)
            _finish(building, key)
            building.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error}; free some space and repeat the command") from error


@contextlib.contextmanager
def _alone(building: Path) -> Iterator[None]:
    """Refuse to write where another process is writing; the lock ends with the process, however it ends."""
    descriptor = os.open(building, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another process is writing {building}; wait for it, or stop it") from None
        yield
    finally:
        os.close(descriptor)


def building_place(target: Path, key: OwnerKey) -> Path:
    """Where an export is until it is whole."""
    return target.with_name(f".{target.name}.{key.identity.key_id[:8]}.partial")


def _write_settings(base: Path, config: PreTrainedConfig, key: OwnerKey, kappa: float, building: Path) -> None:
    """Everything that is no weight."""
    tau = key.tau()
    settings = export_config(config, key, tau, kappa)
    special = {}
    for field, name in _TOKENIZER_NAMES.items():
        held = settings[field][0] if isinstance(settings[field], list) else settings[field]
        if held is not None:
            special[name] = held
    for name, content in {
        "config.json": settings,
        GENERATION_CONFIG: export_generation_config(base, config, tau),
        **tokenizer_files(config.vocab_size, special, config.max_position_embeddings),
    }.items():
        (building / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _finish(building: Path, key: OwnerKey) -> None:
    """Flush everything, then say what there is."""
    digests = {}
    for file in sorted(building.iterdir()):
        if file.name == MARKER:  # of an export that was killed at the very end
            continue
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
    marker = Marker(
        format=1,
        key_id=key.identity.key_id,
        vocabulary=key.identity.vocabulary,
        hidden_size=key.settings.hidden_size,
        files=digests,
    )
    write_marker(building, marker)
