"""What the user asked an audit for, and what one process of it is told to do."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from cutlayer.errors import InputError
from cutlayer.types import DEFAULT_CUT

if TYPE_CHECKING:
    from cutlayer.audit.cell_record import CellConfig
    from cutlayer.audit.grid import Cell
    from cutlayer.audit.material import Item
    from cutlayer.types import Cut

DEFAULT_MODEL: Final = "smollm2-135m"
QUICK_PAIRS: Final = 60_000
"""Enough for a default audit of minutes; studies take 200,000."""
_MOST: Final = 1000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An audit.

    Attributes:
        model: name or directory.
        cuts: as ``A:B``.
        defences: specifications.
        attacks: specifications; None is the default of each defence.
        threats: specifications.
        prompts: file of prompts; None takes the study's own.
        limit: how many of them.
        canaries: how many prompts with planted secrets to add.
        auxiliary: file of the attacker's own text.
        pairs: tokens of it.
        repeats: sessions each prompt is sent in.
        seeds: passes over the prompts with fresh noise and a freshly trained attack.
        codec: of the wire.
        out: directory of records.
        jobs: processes, one cut each.
        device: where layers and attacks run.
        keep_texts: whether records hold prompts and guesses.
        utility: whether to measure what the defence costs in perplexity.
        fresh: whether to measure again what is there.

    Raises:
        InputError: a number is out of range.
    """

    model: str = DEFAULT_MODEL
    cuts: tuple[str, ...] = (DEFAULT_CUT,)
    defences: tuple[str, ...] = ("none",)
    attacks: tuple[str, ...] | None = None
    threats: tuple[str, ...] = ("W2",)
    prompts: Path | None = None
    limit: int | None = None
    canaries: int = 0
    auxiliary: Path | None = None
    pairs: int = QUICK_PAIRS
    repeats: int = 1
    seeds: int = 1
    codec: str = "fp32"
    out: Path = Path("audit")
    jobs: int = 1
    device: str = "cpu"
    keep_texts: bool = False
    utility: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in ("repeats", "seeds", "jobs"):
            value = getattr(self, name)
            if not 1 <= value <= _MOST:
                raise InputError(f"--{name} is {value}; it must be between 1 and {_MOST}")
        if not 0 <= self.canaries <= _MOST:
            raise InputError(f"--canaries is {self.canaries}; it must be between 0 and {_MOST}")

    def command(self) -> str:
        """What would ask for this on the command line."""
        words = ["cutlayer", "audit", "run", self.model]
        plain = msgspec.structs.asdict(self)
        default = msgspec.structs.asdict(Request())
        singular = {"cuts": "cut", "defences": "defence", "attacks": "attack", "threats": "threat"}
        for name, value in plain.items():
            if name in ("model", "fresh") or value == default[name]:
                continue
            option = "--" + singular.get(name, name).replace("_", "-")
            if isinstance(value, bool):
                words.append(option)
            else:
                for each in value if isinstance(value, tuple) else (value,):
                    words += [option, str(each)]
        return shlex.join(words)


class Job(NamedTuple):
    """The cells of one cut, for one process."""

    request: Request
    directory: Path
    span: Cut
    cells: list[CellConfig]
    """To be measured; status and figures are still open."""
    amend: list[Cell]
    """Measured before, but without utility."""
    items: list[Item]
    owned: list[list[int]]
    """The attacker's own text, [S][T] ids."""
    baseline: dict[int, list[int]]
    """Length → what the baseline guesses."""
    threads: int


class Event(NamedTuple):
    """Something happened to a cell."""

    kind: Literal["share", "done", "failed", "skipped", "not applicable"]
    cell: Cell
    share: float = 1.0
    """Of the cell's work done."""
    detail: str = ""
