"""The passphrase of a key file: from a file, or asked for.

Never from the command line, where every user of the machine sees it.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.types import Secret

VARIABLE: Final = "CUTLAYER_PASSPHRASE_FILE"


def read_passphrase(file: Path | None, *, new: bool) -> Secret:
    """The passphrase in `file`, else in the file that `CUTLAYER_PASSPHRASE_FILE` names, else typed on the terminal.

    Args:
        file: with the passphrase in its only line, readable by its owner alone.
        new: ask twice, since a mistyped one would never open again.

    Raises:
        InputError: the file is unreadable, the passphrase empty, or there is no terminal to ask on.
        InsecureError: others can read the file.
    """
    from cutlayer.types import Secret
    from cutlayer.wire.private_files import read_private

    named = os.environ.get(VARIABLE)
    if file is None and named:
        file = Path(named)
    if file is not None:
        held = read_private(file).removesuffix(b"\n").removesuffix(b"\r")
        if not held:
            raise InputError(f"{file} is empty; write a passphrase into it")
        return Secret(held)
    if not sys.stdin.isatty():
        raise InputError(
            f"a key file needs a passphrase and there is no terminal to ask on; give --passphrase-file FILE or set {VARIABLE}"
        )
    typed = getpass.getpass("Passphrase of the key files: ")
    if not typed:
        raise InputError("an empty passphrase protects nothing; give one")
    if new and getpass.getpass("The same again: ") != typed:
        raise InputError("the two passphrases differ; nothing was written")
    return Secret(typed.encode())
