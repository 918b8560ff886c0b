"""Write the packaged table of measured readability from the committed records, or check that it is fresh.

A record takes part with a list ``measured`` in its ``config``, each entry with the fields of
`cutlayer.audit.measured.Measured` but ``record``, which is the record's own name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from cutlayer.audit.measured import TABLE, Measured
from cutlayer.errors import StoreError
from cutlayer.records.record import Record, read_record

ROOT = Path(__file__).parent.parent
PACKAGED = ROOT / "src" / "cutlayer" / "audit" / TABLE


def collect(records: Path) -> list[Measured]:
    """The entries of all records in a directory, sorted.

    Raises:
        StoreError: a record is unreadable, or an entry is malformed.
    """
    entries = [entry for path in sorted(records.glob("*.json")) for entry in _entries(read_record(path))]
    return sorted(entries, key=lambda entry: (entry.model, entry.cut_start, entry.defence, entry.attack, entry.record))


def render(entries: list[Measured]) -> bytes:
    """The table's bytes."""
    return msgspec.json.format(msgspec.json.encode(entries), indent=1) + b"\n"


def _entries(record: Record) -> list[Measured]:
    given = record.config.get("measured", [])
    try:
        return msgspec.convert([{**entry, "record": record.name} for entry in given], list[Measured])
    except (msgspec.ValidationError, TypeError) as error:
        raise StoreError(f'record {record.name}: config["measured"]: {error}') from error


def main() -> int:
    """With --check, return 1 if the table is stale; else rewrite it if it is."""
    check = "--check" in sys.argv[1:]
    fresh = render(collect(ROOT / "benchmarks" / "records"))
    stale = fresh != PACKAGED.read_bytes()
    if stale:
        sys.stdout.write(f"{'stale' if check else 'updated'}: {PACKAGED.relative_to(ROOT)}\n")
        if not check:
            PACKAGED.write_bytes(fresh)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
