"""What the benchmarks share: the prompts, and printing and writing a record."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.records.record import write_record

if TYPE_CHECKING:
    from cutlayer.records.record import Record

ROOT: Final = Path(__file__).parent.parent
RECORDS: Final = Path(__file__).parent / "records"
PROMPTS_OF_WAN: Final = "wan_prompts.jsonl"
PROMPTS: Final = "tests/data/prompts.jsonl (20 prompts of our own)"


def prompt_texts(count: int) -> list[str]:
    """The first `count` prompts, repeated if there are fewer."""
    lines = (ROOT / "tests" / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return [texts[i % len(texts)] for i in range(count)]


def command(name: str) -> str:
    """The command line that repeats this run; of a file or program, its name alone."""
    return shlex.join(["cutlayer", "bench", name, *(_without_folder(argument) for argument in sys.argv[1:])])


def finish(record: Record, *, write: bool) -> None:
    """Print the record's figures as JSON and write the record."""
    if write:
        sys.stderr.write(f"wrote {write_record(record, RECORDS)}\n")
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(record.figures), indent=1).decode() + "\n")


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if value.startswith("/") else argument
