"""What the benchmarks share: the prompts, and printing and writing a record."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from cutlayer.errors import InputError
from cutlayer.records.record import Figure, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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


def ratio(above: Sequence[float], below: Sequence[float], unit: str) -> Figure:
    """Of two sums over prompts or answers, with a bootstrap over them."""
    picks = np.random.default_rng(0).integers(len(above), size=(2000, len(above)))
    low, high = np.quantile(np.array(above)[picks].sum(1) / np.array(below)[picks].sum(1), [0.025, 0.975])
    return Figure(sum(above) / sum(below), float(low), float(high), len(above), unit)


def finish(record: Record, *, write: bool) -> None:
    """Print the record's figures as JSON and write the record."""
    if write:
        sys.stderr.write(f"wrote {write_record(record, RECORDS)}\n")
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(record.figures), indent=1).decode() + "\n")


def recorded(name: str, config: Mapping[str, Any], keys: Iterable[str]) -> Record | None:
    """The committed record of that name, to go on with; None if there is none.

    Raises:
        InputError: what it says under one of the keys is not what `config` says, and going on would lose it.
    """
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return None
    record = read_record(path)
    other = [key for key in keys if record.config.get(key) != config[key]]
    if other:
        raise InputError(
            f"record {name} was measured with another {' and another '.join(other)}; go on with the options of its command "
            f"({record.command}), or leave --resume out to begin anew"
        )
    return record


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if value.startswith("/") else argument
