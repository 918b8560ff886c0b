"""Token files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import InputError, InsecureError
from cutlayer.wire.tls import read_token_file
from cutlayer.wire.token import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    create_token_file,
)

if TYPE_CHECKING:
    from pathlib import Path

GOOD = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


def _write(file: Path, content: bytes, mode: int = 0o600) -> Path:
    file.write_bytes(content)
    file.chmod(mode)
    return file


def test_created_tokens_are_long_private_and_different(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_token_file(tmp_path / "a")
        create_token_file(tmp_path / "b")
    finally:
        os.umask(old)
    first, second = (read_token_file(tmp_path / name).reveal() for name in "ab")
    assert first != second
    assert len(first) == 43  # 32 bytes in base64 without padding
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_token_file_is_never_overwritten(tmp_path: Path) -> None:
    file = _write(tmp_path / "token", GOOD)
    with pytest.raises(InputError, match="never overwritten"):
        create_token_file(file)
    assert file.read_bytes() == GOOD
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="never overwritten"):
        create_token_file(link)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_one_line_end_is_allowed(tmp_path: Path, end: bytes) -> None:
    assert read_token_file(_write(tmp_path / "token", GOOD + end)).reveal() == GOOD


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"0123456789 abcdefgh", "blanks"),
        (b" 0123456789abcdef", "blanks"),
        (GOOD + b"\n\n", "line breaks"),
        (GOOD + b"\nX-Injected: yes", "line breaks"),
        (GOOD + b"\x00", "non-ASCII"),
        ("0123456789abcdé".encode(), "non-ASCII"),
        (GOOD[: MIN_CHARACTERS - 1], "has 15 characters"),
        (b"x" * (MAX_CHARACTERS + 1), "has 4097 characters"),
        (b"x" * (2 << 20), "no key or token"),
    ],
)
def test_bad_tokens_are_refused_without_being_shown(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read_token_file(_write(tmp_path / "token", content))
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InsecureError, match=f"{mode:04o}"):
        read_token_file(_write(tmp_path / "token", GOOD, mode))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_token_file(tmp_path / "none")
    with pytest.raises(InputError, match="no regular file"):
        read_token_file(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InputError, match="no regular file"):
        read_token_file(tmp_path / "pipe")
