"""Books of tokens: who is known by which."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import InputError, InsecureError
from cutlayer.types import Secret
from cutlayer.wire.token import MAX_CHARACTERS, MIN_CHARACTERS, authorisation, create_token_file, read_token_file
from cutlayer.wire.token_book import TokenBook, read_token_book

if TYPE_CHECKING:
    from pathlib import Path

GOOD = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


def _write(file: Path, content: bytes, mode: int = 0o600) -> Path:
    file.write_bytes(content)
    file.chmod(mode)
    return file


def _book(tmp_path: Path, content: bytes) -> TokenBook:
    return read_token_book(_write(tmp_path / "book", content))


def _presented(token: bytes) -> str:
    return authorisation(Secret(token))


def test_each_token_is_its_own_client(tmp_path: Path) -> None:
    book = _book(tmp_path, b"alice " + GOOD + b"\nbob " + OTHER + b"\n")
    assert len(book) == 2
    assert book.identify(_presented(GOOD)) == "alice"
    assert book.identify(_presented(OTHER)) == "bob"
    assert book.identify("bearer " + GOOD.decode()) == "alice"


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer alice", "Bearer alice 0123456789abcdef", "Bearer 0123456789abcdeF",
        "Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Bearer  0123456789abcdef", "Basic 0123456789abcdef",
        "0123456789abcdef", "Bearer ü\udcff", "Bearer \ud800",
    ],
)  # fmt: skip
def test_nobody_is_known_by_anything_else(tmp_path: Path, header: str | None) -> None:
    assert _book(tmp_path, b"alice " + GOOD).identify(header) is None


def test_comments_blank_lines_and_line_ends_are_no_clients(tmp_path: Path) -> None:
    content = b"# who may come in\r\n\r\n  alice   " + GOOD + b"  \r\n   \n  # indented\n#bob " + OTHER + b"\n"
    book = _book(tmp_path, content)
    assert len(book) == 1
    assert book.identify(_presented(GOOD)) == "alice"
    assert book.identify(_presented(OTHER)) is None


def test_a_bare_token_is_a_book_too(tmp_path: Path) -> None:
    create_token_file(tmp_path / "token")
    book = read_token_book(tmp_path / "token")
    assert book.identify(authorisation(read_token_file(tmp_path / "token"))) == "token"
    assert _book(tmp_path, GOOD + b"\nbob " + OTHER).identify(_presented(OTHER)) == "bob"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "names nobody"),
        (b"# nobody\n\n", "names nobody"),
        (b"alice " + GOOD + b"\nalice " + OTHER, "'alice' a second time"),
        (b"alice " + GOOD + b"\nbob " + GOOD, "repeats another's token"),
        (GOOD + b"\n" + OTHER, "line 2 of .* second time"),
        (b"alice\n", "line 1 of .* has 5 characters"),
        (b"alice " + GOOD[: MIN_CHARACTERS - 1], "has 15 characters"),
        (b"alice " + b"x" * (MAX_CHARACTERS + 1), "has 4097 characters"),
        (b"alice " + GOOD + b" " + OTHER, "blanks"),
        (b"al/ice " + GOOD, "no name"),
        (b"alice sha256:abc", "64 hexadecimal"),
        (b"al\x1bice " + GOOD, "no name"),
        ("élise ".encode() + GOOD, "not ASCII"),
        (b"a" * (65) + b" " + GOOD, "no name"),
        (b"x" * (2 << 20), "no key or token"),
    ],
)
def test_bad_books_are_refused_without_being_shown(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        _book(tmp_path, content)
    assert "0123" not in str(caught.value)
    assert "fedc" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_book_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InsecureError, match=f"{mode:04o}"):
        read_token_book(_write(tmp_path / "book", b"alice " + GOOD, mode))


def test_a_book_shows_no_token_when_printed(tmp_path: Path) -> None:
    assert "0123" not in repr(_book(tmp_path, b"alice " + GOOD))


def test_a_hash_lets_in_who_has_the_token_and_not_who_has_the_hash(tmp_path: Path) -> None:
    digest = hashlib.sha256(GOOD).hexdigest()
    book = _book(tmp_path, f"alice sha256:{digest}".encode())
    assert book.identify(_presented(GOOD)) == "alice"
    assert book.identify(f"Bearer sha256:{digest}") is None
    assert book.identify(f"Bearer {digest}") is None
