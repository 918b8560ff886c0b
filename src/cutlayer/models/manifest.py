"""`cutlayer.json`: where a converted model came from, and the sign that its conversion was finished.

It is written last. A model directory in the cache without it, or whose files differ from it in size, is a conversion
that was interrupted and counts as absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST: Final = "cutlayer.json"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a converted model was made of.

    Args:
        name: the name it was pulled under.
        source: package or repository it came from, with version.
        source_sha256: digest of the weights file that was converted.
        licence: SPDX identifier of the weights.
        converted_by: the programs that made these files, with versions.
        files: file name → bytes.
    """

    name: str
    source: str
    source_sha256: str
    licence: str
    converted_by: str
    files: dict[str, int]

    def holds(self, directory: Path) -> bool:
        """Whether every file is in `directory` with its size."""
        return all(
            (directory / file).is_file() and (directory / file).stat().st_size == size
            for file, size in self.files.items()
        )


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of `directory`, or None if it has none.

    Raises:
        IntegrityError: it is there but malformed.
    """
    file = directory / MANIFEST
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{file} is malformed ({error}); remove {directory} and pull the model again") from error
