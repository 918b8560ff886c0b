"""`obfuscation.json`: what an export says of itself to everybody. No secret, no setting and no name of the base is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from cutlayer.errors import IntegrityError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

MARKER: Final = "obfuscation.json"


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module.

    Args:
        format: version of the layout of an export.
        key_id: of the keys it was made with, 32 hexadecimal digits.
        vocabulary: V.
        hidden_size: D.
        files: SHA-256 of every other file.
    """

    format: Literal[1]
    key_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    vocabulary: Annotated[int, msgspec.Meta(ge=1)]
    hidden_size: Annotated[int, msgspec.Meta(ge=1)]
    files: dict[str, str]


def read_marker(directory: Path) -> Marker:
    """The marker of an export.

    Raises:
        ModelNotFoundError: `directory` is no export.
        IntegrityError: its marker is malformed.
    """
    file = directory / MARKER
    if not file.is_file():
        raise ModelNotFoundError(
            f"{directory} holds no {MARKER}; it was not made by `cutlayer obfuscate`, or not finished"
        )
    try:
        return msgspec.json.decode(file.read_bytes(), type=Marker)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{file} is malformed ({error}); export the model again") from error


def write_marker(directory: Path, marker: Marker) -> None:
    """Write it, last of all files."""
    (directory / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(marker), indent=2) + b"\n")
