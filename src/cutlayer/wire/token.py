"""Bearer tokens: who may use a server without a client certificate.

A token is as good as its secrecy: it goes over TLS (or loopback) only, lies in a file that nobody else can read, and is
compared in constant time. It is never taken from the command line, where every user of the machine could see it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError
from cutlayer.types import Secret
from cutlayer.wire.private_files import read_private, write_new

if TYPE_CHECKING:
    from pathlib import Path

MIN_CHARACTERS: Final = 16
MAX_CHARACTERS: Final = 4096
"""What fits an HTTP header everywhere."""
RANDOM_BYTES: Final = 32
MAX_NAME_CHARACTERS: Final = 64
ANONYMOUS: Final = b"token"
"""Name of a client known by a token without one."""

_SCHEME: Final = "bearer"


def create_token_file(file: Path) -> None:
    """Write a new random token to `file`, which must not exist; its mode is 0600.

    Raises:
        InputError: `file` exists or cannot be written.
    """
    write_new(file, secrets.token_urlsafe(RANDOM_BYTES).encode() + b"\n")


def read_token_file(file: Path) -> Secret:
    """The token in `file`. One line end after it is allowed.

    Raises:
        InputError: missing, empty, too short or long, or with characters that no HTTP header carries.
        InsecureError: others can read the file.
    """
    token = read_private(file).removesuffix(b"\n").removesuffix(b"\r")
    if not token:
        raise InputError(f"{file} is empty; write a token with `cutlayer keys token NEWFILE`")
    return _checked(token, str(file))


class TokenBook:
    """Who is known by which token.

    Args:
        tokens: name → token.
    """

    def __init__(self, tokens: dict[str, Secret]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def identify(self, header: str | None) -> str | None:
        """Whose token an Authorization header presents. Compares with all, so that the time tells nothing."""
        known = [name for name, token in self._tokens.items() if token_matches(token, header)]
        return known[0] if known else None


def read_token_book(file: Path) -> TokenBook:
    """Tokens of clients: one line each, a name, a blank and the token; ``#`` begins a comment line. A token alone is a book too.

    Raises:
        InputError: an empty file, a malformed line, or a name or token given twice.
        InsecureError: others can read the file.
    """
    tokens: dict[str, Secret] = {}
    for number, line in enumerate(map(bytes.strip, read_private(file).splitlines()), 1):
        if not line or line.startswith(b"#"):
            continue
        place = f"line {number} of {file}"
        name, blank, token = line.partition(b" ")
        if not blank:
            name, token = ANONYMOUS, name
        if not name.isascii() or not name.decode("ascii", "replace").isprintable() or len(name) > MAX_NAME_CHARACTERS:
            raise InputError(f"{place} begins with no name of at most {MAX_NAME_CHARACTERS} printable ASCII characters")
        if name.decode() in tokens:
            raise InputError(f"{place} gives the name {name.decode()!r} a second time")
        secret = _checked(token.strip(), place)
        if any(hmac.compare_digest(secret.reveal(), other.reveal()) for other in tokens.values()):
            raise InputError(f"{place} repeats another client's token; every client needs its own")
        tokens[name.decode()] = secret
    if not tokens:
        raise InputError(f"{file} names no client; write lines of a name, a blank and a token")
    return TokenBook(tokens)


def authorisation(token: Secret) -> str:
    """Value of the Authorization header that presents `token`."""
    return f"Bearer {token.reveal().decode('ascii')}"


def token_matches(token: Secret, header: str | None) -> bool:
    """Whether an Authorization header presents `token`. Takes the same time wherever the first difference is."""
    scheme, _, presented = (header or "").partition(" ")
    # Digests, so that not even the length of the token shows in the time.
    expected, got = (
        hashlib.sha256(value).digest() for value in (token.reveal(), presented.encode("utf-8", "surrogatepass"))
    )
    return hmac.compare_digest(expected, got) and scheme.lower() == _SCHEME


def _checked(token: bytes, place: str) -> Secret:
    if not all(0x21 <= byte <= 0x7E for byte in token):  # printable ASCII without the blank
        raise InputError(
            f"{place} holds blanks, line breaks or non-ASCII bytes; a token is one word of printable ASCII"
        )
    if not MIN_CHARACTERS <= len(token) <= MAX_CHARACTERS:
        raise InputError(
            f"the token in {place} has {len(token)} characters; it needs {MIN_CHARACTERS} to {MAX_CHARACTERS}, "
            "and `cutlayer keys token NEWFILE` writes a good one"
        )
    return Secret(token)
