"""A directory of audit records: one file per cell, the list of cells that were asked for, and nothing else.

    audit-KEY.json    one cell, written whole or not at all
    plan.json         what was asked for, so that a cell that is missing is noticed
    prompts.key       keys the digests of prompts; without it nobody can test a guess of a prompt against a record

Footgun: a directory is read as data of a stranger; it may be one.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.audit.cell_record import PREFIX, TEXTS, CellRecord
from cutlayer.audit.grid import MAX_CELLS, Cell
from cutlayer.errors import CutError, InputError, StoreError
from cutlayer.records.record import Record
from cutlayer.wire.private_files import read_private, write_new

if TYPE_CHECKING:
    from pathlib import Path

MAX_RECORD_BYTES: Final = 32 << 20
"""Far above what a thousand prompts with texts take."""
PLAN: Final = "plan.json"
_KEY: Final = "prompts.key"
_PRIVATE: Final = 0o600
_SHARED: Final = 0o644


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a directory is of.

    Attributes:
        fingerprint: of the model.
        model: its name.
        cells: all that were asked for, in order.
    """

    fingerprint: str
    model: str
    cells: list[Cell]

    def with_cells(self, cells: list[Cell]) -> Plan:
        """The plan with more cells, each once."""
        merged = {cell.key: cell for cell in (*self.cells, *cells)}
        return Plan(self.fingerprint, self.model, list(merged.values()))


class Shelf:
    """A directory of records.

    Args:
        directory: need not exist until something is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def plan(self) -> Plan | None:
        """What was asked for; None where nothing was yet.

        Raises:
            StoreError: the file is something else.
        """
        path = self.directory / PLAN
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(_content(path), type=Plan)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CutError) as error:
            raise StoreError(f"{path} is no plan of an audit: {error}") from None

    def write_plan(self, plan: Plan) -> None:
        """Write it atomically."""
        self._write(PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=1), _SHARED)

    def key(self) -> bytes:
        """The key of prompt digests, made on first use.

        Raises:
            InsecureError: others can read it.
        """
        path = self.directory / _KEY
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            write_new(path, secrets.token_hex(32).encode())
        return read_private(path)

    def save(self, record: Record) -> Path:
        """Write a record atomically; for its owner alone if it holds texts."""
        private = any(column in record.samples for column in TEXTS)
        content = msgspec.json.format(msgspec.json.encode(record), indent=1)
        return self._write(f"{record.name}.json", content, _PRIVATE if private else _SHARED)

    def find(self, cell: Cell) -> CellRecord | None:
        """The record of a cell, if there is one that can be read; a broken one is as good as none."""
        path = self.directory / f"{PREFIX}{cell.key}.json"
        try:
            return _read(path) if path.exists() else None
        except StoreError:
            return None

    def drop(self, cell: Cell) -> None:
        """Remove the record of a cell, if there is one."""
        (self.directory / f"{PREFIX}{cell.key}.json").unlink(missing_ok=True)

    def records(self) -> list[CellRecord]:
        """All records, in the plan's order and then by name.

        Raises:
            StoreError: no directory, no records, too many, or one of them is none.
        """
        if not self.directory.is_dir():
            raise StoreError(f"{self.directory} is no directory; `cutlayer audit run --out {self.directory}` makes one")
        paths = sorted(self.directory.glob(f"{PREFIX}*.json"))
        if not paths:
            raise StoreError(f"{self.directory} holds no records of an audit ({PREFIX}*.json)")
        if len(paths) > MAX_CELLS:
            raise StoreError(f"{self.directory} holds {len(paths)} records; more than {MAX_CELLS} are not read")
        plan = self.plan()
        order = {cell.key: i for i, cell in enumerate(plan.cells)} if plan else {}
        return sorted(map(_read, paths), key=lambda found: (order.get(found.cell.key, len(order)), found.cell.key))

    def _write(self, name: str, content: bytes, mode: int) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        path, partial = self.directory / name, self.directory / f".{name}.{os.getpid()}.partial"
        partial.unlink(missing_ok=True)
        try:
            write_new(partial, content + b"\n", mode)  # the mode from the first byte on
            partial.replace(path)
        except (OSError, InputError) as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"cannot write {path}: {error}") from error
        return path


def _read(path: Path) -> CellRecord:
    try:
        return CellRecord(msgspec.json.decode(_content(path), type=Record))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path} is no record: {error}") from None
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None


def _content(path: Path) -> bytes:
    """The content of a regular file of bearable size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path} is no regular file")
            if status.st_size > MAX_RECORD_BYTES:
                raise StoreError(f"{path} has {status.st_size:,} bytes; a record has {MAX_RECORD_BYTES:,} at most")
            return stream.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
