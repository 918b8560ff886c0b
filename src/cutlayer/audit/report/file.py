"""Writes reports: whole or not at all, and for their owner alone if they hold texts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cutlayer.audit.cell_record import TEXTS
from cutlayer.audit.report.page import render_page
from cutlayer.errors import StoreError
from cutlayer.wire.private_files import PRIVATE, PUBLIC

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.audit.cell_record import CellRecord


def write_page(records: Sequence[CellRecord], file: Path) -> None:
    """Write the HTML page.

    Raises:
        StoreError: the file cannot be written.
    """
    private = any(column in record.samples for record in records for column in TEXTS)
    write_file(file, render_page(records).encode(), PRIVATE if private else PUBLIC)


def write_file(file: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Replace a file atomically.

    Raises:
        StoreError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"cannot write {file}: {error.strerror}") from error
