"""Bearer tokens: who may use a server without a client certificate.

A token is as good as its secrecy: it goes over TLS (or loopback) only, lies in a file that nobody else can read, and is
compared in constant time. It is never taken from the command line, where every user of the machine could see it.
"""

from __future__ import annotations

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
    return check_token(token, str(file))


def authorisation(token: Secret) -> str:
    """Value of the Authorization header that presents `token`."""
    return f"Bearer {token.reveal().decode('ascii')}"


def check_token(token: bytes, place: str) -> Secret:
    """Return `token` as a secret.

    Raises:
        InputError: it is too short or long, or holds characters that no HTTP header carries; names `place`, not the token.
    """
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
