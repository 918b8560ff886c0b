"""What one cell's record says, typed: everything a report needs, so that reports never run anything.

A record holds scores of every prompt, never prompts or guesses, unless they were asked for (`texts_kept`).

Notation: R rows of samples, one per prompt and seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from cutlayer.audit.grid import Cell
from cutlayer.errors import CutError, StoreError

if TYPE_CHECKING:
    from cutlayer.records.record import Figure, Record

Status = Literal["complete", "error", "not applicable"]
PREFIX: Final = "audit-"
PRIOR: Final = "prior_"
"""Before a metric's name: what the baseline scored on the same prompts."""
TEXTS: Final = ("truth", "guess")
_DESCRIPTIVE: Final = frozenset({"id", "seed", "canary", *TEXTS})


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The prompts that were attacked.

    Attributes:
        source: where they are from.
        count: how many.
        canaries: how many of these hold planted secrets.
        shortest: tokens.
        longest: tokens.
        digest: of texts and ids, keyed with a key that stays in the directory; tells a resumed run that nothing changed,
            and strangers nothing.
    """

    source: str
    count: int
    canaries: int
    shortest: int
    longest: int
    digest: str


class Owned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The attacker's own text.

    Attributes:
        source: where it is from.
        pairs: tokens, each with the hidden state it gave.
        length: tokens per sequence.
        digest: of its ids.
    """

    source: str
    pairs: int
    length: int
    digest: str


class ClientCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a cut costs the client.

    Attributes:
        layers: k + m.
        bytes: weights and 4,096 positions of cache in bfloat16.
    """

    layers: int
    bytes: int


class CellConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a cell was measured.

    Attributes:
        cell: which.
        status: how it ended.
        reason: why there are no figures.
        model: as it was asked for.
        fingerprint: of the model.
        codec: of the wire.
        repeats: sessions each prompt was seen in.
        seeds: of noise, the attacker's text keys and the attack, one pass over the prompts each.
        prompts: what was attacked.
        owned: the attacker's own text; None if nothing needed it.
        client: what the cut costs.
        texts_kept: whether `samples` holds texts.
        unmeasured: metric → why it has no figure.
        seconds: the cell took.
        digest: of everything above that decides the outcome.
    """

    cell: Cell
    status: Status
    reason: str | None
    model: str
    fingerprint: str
    codec: str
    repeats: int
    seeds: tuple[int, ...]
    prompts: Prompts
    owned: Owned | None
    client: ClientCost
    texts_kept: bool
    unmeasured: dict[str, str]
    seconds: float
    digest: str


class CellRecord:
    """A checked record of one cell.

    Args:
        record: as read.

    Raises:
        StoreError: it is no record of an audit's cell.
    """

    def __init__(self, record: Record) -> None:
        try:
            self.config = msgspec.convert(record.config, CellConfig)
        except (msgspec.ValidationError, CutError) as error:
            raise StoreError(f"record {record.name[:80]!r} is none of an audit's cell: {error}") from None
        _check(record, self.config)
        self.record = record
        self.cell = self.config.cell

    @property
    def figures(self) -> dict[str, Figure]:
        """Key → figure."""
        return self.record.figures

    @property
    def complete(self) -> bool:
        """Whether there are figures."""
        return self.config.status == "complete"

    @property
    def samples(self) -> dict[str, list[Any]]:
        """Column → R values."""
        return self.record.samples

    @property
    def metrics(self) -> list[str]:
        """Columns of scores."""
        return [name for name in self.samples if name not in _DESCRIPTIVE]

    @property
    def leakage(self) -> Figure | None:
        """What cells are compared by: the advantage over the baseline."""
        return self.figures.get("advantage")


def _check(record: Record, config: CellConfig) -> None:
    """Columns are as long as each other and hold what they should."""
    name = record.name[:80]
    if record.name != PREFIX + config.cell.key:
        raise StoreError(f"record {name!r} is of another cell, {config.cell.key!r}")
    lengths = {len(column) for column in record.samples.values()}
    if len(lengths) > 1:
        raise StoreError(f"record {name!r}: its columns of samples are of different lengths {sorted(lengths)}")
    if config.status == "complete" and not (
        lengths and record.figures and {"id", "seed", "tokens"} <= set(record.samples)
    ):
        raise StoreError(f"record {name!r} calls itself complete but lacks samples or figures")
    for column, values in record.samples.items():
        kind: type | tuple[type, ...] = str if column in ("id", *TEXTS) else (int, float, type(None))
        if not all(isinstance(value, kind) for value in values):
            raise StoreError(f"record {name!r}: column {column[:40]!r} holds other things than it should")
    for key, figure in record.figures.items():
        if not all(map(math.isfinite, (figure.value, figure.low, figure.high))):
            raise StoreError(f"record {name!r}: figure {key[:40]!r} is not finite")
