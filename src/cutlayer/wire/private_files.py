"""Files that hold secrets: created once for their owner alone, and not read if others can read them too."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError, InsecureError

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644

MAX_BYTES: Final = 1 << 20
"""Far above any key or token; a device or log given by mistake must not fill memory."""

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def write_new(file: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Create `file` with `mode` and write `content`. An existing file is never touched, nor followed if it is a link.

    Raises:
        InputError: it exists, or cannot be written.
    """
    try:
        # The mode is given at creation: a chmod afterwards would leave a moment in which others can open the file.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise InputError(f"{file} exists and is never overwritten; choose another path or remove it yourself") from None
    except OSError as error:
        raise InputError(f"cannot create {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def read_private(file: Path, most: int = MAX_BYTES) -> bytes:
    """Read a file that holds a secret, of at most `most` bytes.

    Raises:
        InputError: it is missing, unreadable, no regular file, or absurdly long.
        InsecureError: its group or others have any access to it.
    """
    try:
        # Without O_NONBLOCK the open would wait for the other end of a pipe; the check below then refuses it.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    try:
        # Of the open file, not of the path, which could lead elsewhere a moment later.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is no regular file")
        if status.st_mode & _OTHERS:
            raise InsecureError(
                f"{file} holds a secret but has mode {stat.S_IMODE(status.st_mode):04o}, so others can get at it; "
                f"run `chmod 600 {file}`, and replace the secret if others may have read it"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise InputError(f"{file} is longer than {most} bytes; that is no key or token")
    return content
