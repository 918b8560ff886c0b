"""Who is known by which token: clients of a server, holders of a gateway's API keys.

The file has a line ``NAME TOKEN`` or ``NAME sha256:HEX`` for each; blank lines and lines that begin with ``#`` are left out. A
token alone is a book too. Only its owner may read it. A hash is enough where the clients hold the tokens: it lets nobody in.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError
from cutlayer.wire.private_files import read_private
from cutlayer.wire.token import check_token

if TYPE_CHECKING:
    from pathlib import Path

ANONYMOUS: Final = "token"
"""Name of who is known by a token without one."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")


class TokenBook:
    """Names and digests of tokens.

    Args:
        digests: name → SHA-256 of the token.
    """

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"TokenBook(<{len(self)} tokens>)"

    def identify(self, header: str | None) -> str | None:
        """Whose token an Authorization header presents, or None. Takes the same time whichever it is."""
        scheme, _, presented = (header or "").partition(" ")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def read_token_book(file: Path) -> TokenBook:
    """Read a file of tokens.

    Raises:
        InputError: missing, empty, a line of another form, or a name or token given twice. Messages name lines, never tokens.
        InsecureError: others can read the file.
    """
    try:
        lines = read_private(file).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file} holds characters that are not ASCII; names and tokens are printable ASCII") from None
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"line {number} of {file}"
        if len(words) > 2:
            raise InputError(f"{place} has more than a name and a token, which hold no blanks")
        name, token = words if len(words) == 2 else (ANONYMOUS, words[0])
        if not _NAME.fullmatch(name):
            raise InputError(f"{place} begins with no name of at most 64 letters, digits, dots, dashes and underlines")
        if name in digests:
            raise InputError(f"{place} gives the name {name!r} a second time")
        digest = _digest(token, place)
        if digest in digests.values():
            raise InputError(f"{place} repeats another's token; everybody needs their own")
        digests[name] = digest
    if not digests:
        raise InputError(f"{file} names nobody; write lines of the form NAME TOKEN")
    return TokenBook(digests)


def _digest(token: str, place: str) -> bytes:
    if hashed := _HASH.fullmatch(token):
        return bytes.fromhex(hashed[1])
    if token.startswith("sha256:"):
        raise InputError(f"{place}: a hash is sha256: and 64 hexadecimal digits")
    return hashlib.sha256(check_token(token.encode(), place).reveal()).digest()
