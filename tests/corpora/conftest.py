"""A tokenizer of words and a small encyclopedia."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import pytest

from cutlayer.corpora import encyclopedia
from cutlayer.corpora.split import study_ids

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START = 1
"""First id of every text, as many tokenizers add one."""


@pytest.fixture
def words() -> Callable[[str], list[int]]:
    """One id per word."""
    return lambda text: [START, *(2 + zlib.crc32(word.encode()) for word in text.split())]


@pytest.fixture
def small_encyclopedia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of an encyclopedia of 120 documents, 20 of them listed for studies; each document's words are its own."""
    listed = [name.removeprefix("wiki/") for name in study_ids()[:20]]
    titles = listed + [f"Article {i}" for i in range(100)]
    entries = {
        title: {
            "title": title,
            "extract": " ".join(f"It has w{i}-{j}x and w{i}-{j}y and nothing else." for j in range(10)),
            "topic": "Arts",
            "description": "",
        }
        for i, title in enumerate(titles)
    }
    path = tmp_path / "encyclopedia.json"
    path.write_text(json.dumps(entries))
    monkeypatch.setattr(encyclopedia, "_path", lambda: path)
    return titles


@pytest.fixture
def no_encyclopedia(monkeypatch: pytest.MonkeyPatch) -> None:
    """None installed."""
    monkeypatch.setattr(encyclopedia, "PACKAGE", "cutlayer-no-such-package")
