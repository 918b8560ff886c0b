"""API keys: who may use this gateway, and under which name their requests are counted, queued and logged.

The file has one key per line, ``NAME KEY`` or ``NAME sha256:HEX``; blank lines and lines that begin with # are left out. Only
its owner may read it. A hash is enough where the clients hold the keys: it lets nobody in.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError
from cutlayer.wire.private_files import read_private
from cutlayer.wire.token import MAX_CHARACTERS, MIN_CHARACTERS

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_KEY: Final = re.compile(rf"[\x21-\x7e]{{{MIN_CHARACTERS},{MAX_CHARACTERS}}}")


class ApiKeys:
    """Names and digests of keys.

    Args:
        digests: name → SHA-256 of the key.
    """

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"ApiKeys(<{len(self)} keys>)"

    def owner(self, authorization: str | None) -> str | None:
        """Whose key an Authorization header presents, or None. Takes the same time whichever it is."""
        scheme, _, presented = (authorization or "").partition(" ")
        digest = hashlib.sha256(presented.strip().encode("utf-8", "surrogatepass")).digest()
        owner = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                owner = name
        return owner if scheme.lower() == "bearer" else None


def read_api_keys(file: Path) -> ApiKeys:
    """Read a file of keys.

    Raises:
        InputError: missing, empty, a line of another form, or a name or key given twice. Messages name lines, never keys.
        InsecureError: others can read the file.
    """
    digests: dict[str, bytes] = {}
    try:
        lines = read_private(file).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file} holds characters that are not ASCII; names and keys are printable ASCII") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise InputError(f"{file}, line {number}: not of the form NAME KEY or NAME sha256:HEX")
        name, key = words
        if hashed := _HASH.fullmatch(key):
            digest = bytes.fromhex(hashed[1])
        elif _KEY.fullmatch(key) and not key.startswith("sha256:"):
            digest = hashlib.sha256(key.encode()).digest()
        else:
            raise InputError(
                f"{file}, line {number}: a key has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters, a hash 64 hexadecimal "
                "digits; `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes a good key"
            )
        if name in digests or digest in digests.values():
            raise InputError(f"{file}, line {number}: this name or key is there already")
        digests[name] = digest
    if not digests:
        raise InputError(f"{file} holds no key; write lines of the form NAME KEY")
    return ApiKeys(digests)
