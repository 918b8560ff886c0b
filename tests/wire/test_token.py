"""Token files and the header that presents a token."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import InputError, InsecureError
from cutlayer.types import Secret
from cutlayer.wire.tls import read_token_file
from cutlayer.wire.token import (
    MAX_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MIN_CHARACTERS,
    TokenBook,
    authorisation,
    create_token_file,
    read_token_book,
    token_matches,
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


def test_header_round_trip() -> None:
    token = Secret(GOOD)
    assert token_matches(token, authorisation(token))
    assert token_matches(token, "bearer 0123456789abcdef")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer 0123456789abcdeF",
        "Bearer 0123456789abcde",
        "Bearer 0123456789abcdef0",
        "Bearer  0123456789abcdef",
        "Basic 0123456789abcdef",
        "0123456789abcdef",
        "Bearer ü\udcff",
        "Bearer \ud800",
    ],
)
def test_other_headers_do_not_match(header: str | None) -> None:
    assert not token_matches(Secret(GOOD), header)


# Books: who is known by which token


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
    [None, "", "Bearer", "Bearer ", "Bearer alice", "Basic 0123456789abcdef", "Bearer alice 0123456789abcdef"],
)
def test_nobody_is_known_by_anything_else(tmp_path: Path, header: str | None) -> None:
    assert _book(tmp_path, b"alice " + GOOD).identify(header) is None


def test_every_token_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping at the first match would tell by the time where in the file a client stands."""
    compared = []

    def counted(token: Secret, header: str | None) -> bool:
        compared.append(token)
        return token_matches(token, header)

    monkeypatch.setattr("cutlayer.wire.token.token_matches", counted)
    book = TokenBook({"alice": Secret(GOOD), "bob": Secret(OTHER)})
    for header in (_presented(GOOD), _presented(OTHER), "Bearer wrong"):
        compared.clear()
        book.identify(header)
        assert len(compared) == 2


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
        (b"", "names no client"),
        (b"# nobody\n\n", "names no client"),
        (b"alice " + GOOD + b"\nalice " + OTHER, "'alice' a second time"),
        (b"alice " + GOOD + b"\nbob " + GOOD, "repeats another client's token"),
        (GOOD + b"\n" + OTHER, "line 2 of .* second time"),
        (b"alice\n", "line 1 of .* has 5 characters"),
        (b"alice " + GOOD[: MIN_CHARACTERS - 1], "has 15 characters"),
        (b"alice " + b"x" * (MAX_CHARACTERS + 1), "has 4097 characters"),
        (b"alice " + GOOD + b" " + OTHER, "blanks"),
        (b"alice\t" + GOOD, "blanks"),
        (b"al\x1bice " + GOOD, "no name"),
        ("élise ".encode() + GOOD, "no name"),
        (b"a" * (MAX_NAME_CHARACTERS + 1) + b" " + GOOD, "no name"),
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
