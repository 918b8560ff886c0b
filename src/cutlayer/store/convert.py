"""GGUF → a directory of safetensors (float32), config and tokenizer that transformers and cutlayer load in two seconds.

Reading the GGUF costs about 20 s each time, nearly all of it parsing the vocabulary and unpacking quantised blocks, so
it is done once. Unpacking is exact: the float32 values are those the quantised file stands for.

The directory appears under its name whole or not at all: it is built beside it, flushed, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec

import cutlayer
from cutlayer.errors import StoreError
from cutlayer.models.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cutlayer.store.catalogue import Source

# Left by reading a GGUF; they describe that reading and not the model.
_CONFIG_LEFTOVERS: Final = ("_name_or_path", "_model_name_or_path")
_TOKENIZER_LEFTOVERS: Final = ("is_local", "local_files_only")
_SPECIAL_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def convert(
    name: str, gguf: Path, source: Source, target: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Convert `gguf` into the directory `target`, replacing what is there.

    The caller holds the lock of `name`.

    Args:
        name: the name the model is pulled under.
        gguf: the verified weights file.
        source: what it was taken from.
        target: directory to appear.
        progress: called with (tensors done, tensors in all).

    Raises:
        StoreError: the file cannot be converted or the result not written.
    """
    building = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(building, ignore_errors=True)  # of a conversion that was interrupted
        building.mkdir(parents=True)
        _write_model(gguf, building, progress or (lambda done, total: None))
        _write_manifest(name, source, building)
        if target.exists():
            shutil.rmtree(target)
        building.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error}; free some space or set CUTLAYER_HOME elsewhere") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_model(gguf: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    where, file = gguf.parent, gguf.name
    try:
        config = AutoConfig.from_pretrained(where, gguf_file=file, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with _reporting(modeling_gguf_pytorch_utils, progress):
            tensors = modeling_gguf_pytorch_utils.load_gguf_checkpoint(
                gguf, return_tensors=True, model_to_load=model, torch_dtype=torch.float32
            )["tensors"]
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise StoreError(f"cannot convert {gguf.name}: {type(error).__name__}: {error}") from error
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(directory)
    _drop(directory / "config.json", _CONFIG_LEFTOVERS)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    _drop(directory / "tokenizer_config.json", _TOKENIZER_LEFTOVERS)
    special = {key: getattr(config, key) for key in _SPECIAL_TOKENS if getattr(config, key, None) is not None}
    _write_json(directory / "generation_config.json", special)


def _write_manifest(name: str, source: Source, directory: Path) -> None:
    """Flush all files, then say that they are all there."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    for file in files:
        file.chmod(0o644)  # safetensors creates its file readable by its owner alone
        _flush(file)
    manifest = Manifest(
        name=name,
        source=str(source),
        source_sha256=source.member_sha256,
        licence=source.licence,
        converted_by=", ".join(
            [f"cutlayer {cutlayer.__version__}", *(f"{part} {version(part)}" for part in ("transformers", "gguf"))]
        ),
        files={file.name: file.stat().st_size for file in files},
    )
    path = directory / MANIFEST
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    _flush(path)
    _flush(directory)


@contextlib.contextmanager
def _reporting(module: Any, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Put our progress where transformers' GGUF reader draws a bar of its own on stderr."""

    def follow(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for done, tensor in enumerate(tensors):
            progress(done, len(tensors))
            yield tensor
        progress(len(tensors), len(tensors))

    bar = module.tqdm
    module.tqdm = follow
    try:
        yield
    finally:
        module.tqdm = bar


def _drop(file: Path, keys: tuple[str, ...]) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    _write_json(file, {key: value for key, value in held.items() if key not in keys})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Make a file or a directory's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
