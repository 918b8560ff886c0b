"""Prompt files: what is read, and what is refused with the line's number but without its content."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.corpora import prompts as module
from cutlayer.corpora.prompts import parse_prompts, read_prompts
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "Ottoline"


def test_fields_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"text": "Call Ann on 4711.", "id": "a", "entities": ["Ann", "4711"], "attributes": {"domain": "private"}}\n'
        "\n"
        '{"text": "Two."}\r\n',
        encoding="utf-8-sig",
    )
    first, second = read_prompts(path)
    assert (first.id, first.entities, first.attributes) == ("a", ["Ann", "4711"], {"domain": "private"})
    assert (second.id, second.text, second.entities, second.attributes) == ("line-3", "Two.", [], {})


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives(texts: list[str]) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "surrogatepass") for text in texts]
    assert [prompt.text for prompt in parse_prompts(b"\n".join(lines), "x")] == texts


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "Ottoline", "name": "x"}', "unknown field"),
        (b'{"id": "x"}', "text"),
        (b'{"text": 5}', "str"),
        (b'{"text": "   "}', "empty"),
        (b'{"text": "Ottoline", "id": ""}', "id"),
        (b'{"text": "Ottoline", "id": 7}', "id"),
        (b'{"text": "Ottoline", "entities": ["Ottolina"]}', "entity 1 does not occur"),
        (b'{"text": "Ottoline x", "entities": ["Ottoline", " "]}', "entity 2 does not occur"),
        (b'{"text": "Ottoline", "entities": [""]}', "entities"),
        (b'{"text": "Ottoline", "entities": "Ottoline"}', "entities"),
        (b'{"text": "Ottoline", "attributes": {"a": 1}}', "attributes"),
        (b'["Ottoline"]', "object"),
        (b'{"text": "Ottoline"', "malformed|truncated"),
        (b'{"text": "Ottoline"} {}', "malformed|trailing"),
        (b'{"text": "Ottoline \xff\xfe"}', "utf-8|UTF-8|invalid|malformed"),
        (b'{"text": "\\ud800Ottoline"}', "malformed|truncated|surrogate|invalid"),
        (b"[" * 100_000, "object|recursion|malformed"),
        (b'{"text": "Ottoline", "attributes": ' + b'{"a":' * 50_000, "not a prompt"),
    ],
)
def test_bad_lines_are_named_by_number_and_not_repeated(line: bytes, says: str) -> None:
    good = b'{"text": "first", "id": "p"}\n\n'
    with pytest.raises(InputError, match=f"file, line 3.*({says})") as caught:
        parse_prompts(good + line, "file")
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 2


def test_duplicate_ids_even_with_a_default_one() -> None:
    with pytest.raises(InputError, match=r"line 2.*same id"):
        parse_prompts(b'{"text": "a", "id": "line-2"}\n{"text": "b"}', "file")


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_prompts(data: bytes) -> None:
    with pytest.raises(InputError, match="holds no prompts"):
        parse_prompts(data, "file")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMPTS", 2)
    lines = b'{"text": "a"}\n' * 2
    assert len(parse_prompts(lines, "file")) == 2
    with pytest.raises(InputError, match="more than 2 prompts"):
        parse_prompts(lines + lines, "file")
    with pytest.raises(InputError, match="line 1"):
        parse_prompts(b'{"text": "' + b"a" * (module.MAX_TEXT_CHARACTERS + 1) + b'"}', "file")
    with pytest.raises(InputError, match="larger than 10 bytes"):
        module.read_bounded(_written(tmp_path, b"a" * 11), 10)
    assert module.read_bounded(_written(tmp_path, b"a" * 10), 10) == b"a" * 10


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path)


def _written(directory: Path, data: bytes) -> Path:
    path = directory / "file"
    path.write_bytes(data)
    return path
