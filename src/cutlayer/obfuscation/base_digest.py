"""SHA-256 over a base's weights and configuration, so that a key is never used with another fine-tuning of the same model.

Reads every byte. Within a process it is remembered for files that have not changed since.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path


def base_digest(directory: Path) -> str:
    """Digest of ``config.json`` and all safetensors files, hexadecimal.

    Raises:
        WeightsError: a file cannot be read.
    """
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    try:
        return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename}: {error.strerror}") from error


@lru_cache(maxsize=1)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            whole.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
