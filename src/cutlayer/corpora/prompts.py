"""Prompt files: JSON Lines, one ``{"text": …}`` per line with optional ``id``, ``entities`` and ``attributes``.

    {"id": "p1", "text": "Call Ada on 5550100234.", "entities": ["Ada", "5550100234"], "attributes": {"domain": "private"}}

Footgun: prompts are private. Messages name the file, the line and the field, never what stands in it.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 64 << 20
MAX_PROMPTS: Final = 100_000
MAX_TEXT_CHARACTERS: Final = 1 << 17
MAX_ENTITIES: Final = 256

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Value = Annotated[str, msgspec.Meta(max_length=1000)]
_Entity = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text a user would send.

    Attributes:
        text: what is sent.
        id: unique within its file.
        entities: what in it identifies or exposes someone; each stands in `text` verbatim.
        attributes: what is true of it without standing in it, e.g. ``domain``.
    """

    text: str
    id: str
    entities: list[str] = []
    attributes: dict[str, str] = {}


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
    id: _Name | None = None
    entities: Annotated[list[_Entity], msgspec.Meta(max_length=MAX_ENTITIES)] = []
    attributes: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=64)] = {}


_DECODER: Final = msgspec.json.Decoder(_Line)


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file.

    Raises:
        InputError: unreadable, too large, malformed (with the line's number), or without prompts.
    """
    return parse_prompts(read_bounded(path), str(path))


def parse_prompts(data: bytes, source: str) -> list[Prompt]:
    """Read JSON Lines; blank lines are skipped, and a line without an id is called ``line-N``.

    Args:
        data: UTF-8, with or without a byte-order mark.
        source: what messages call it.

    Raises:
        InputError: see `read_prompts`.
    """
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{source}, line {number}", f"line-{number}")
        if prompt.id in prompts:
            raise InputError(f"{source}, line {number}: an earlier prompt has the same id; ids must be unique")
        if len(prompts) == MAX_PROMPTS:
            raise InputError(f"{source} holds more than {MAX_PROMPTS:,} prompts; give fewer")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InputError(f'{source} holds no prompts; give one JSON object per line, {{"text": "…"}}')
    return list(prompts.values())


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """A file's bytes, at most `limit` of them.

    Raises:
        InputError: unreadable or longer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > limit:
        raise InputError(f"{path} is larger than {limit:,} bytes; give a part of it")
    return data


def _prompt(line: bytes, where: str, default: str) -> Prompt:
    try:
        read = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f'{where}: not a prompt, {{"text": …, "id": …, "entities": […], "attributes": {{…}}}}: {error}'
        ) from None
    if not read.text.strip():
        raise InputError(f"{where}: the text is empty")
    for i, entity in enumerate(read.entities):
        if not entity.strip() or entity not in read.text:
            raise InputError(f"{where}: entity {i + 1} does not occur in the text verbatim; correct or remove it")
    return Prompt(read.text, read.id if read.id is not None else default, read.entities, read.attributes)
