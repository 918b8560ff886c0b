"""What audits have measured, in one sentence about the setting in use.

`measured.json` beside this file is written from the committed records by ``scripts/measured.py``; nothing here invents a
number. Where the setting itself was not measured, the sentence says so first.

Footgun: a figure is about the strongest attack that was run, not the strongest there is.

Notation: k head layers, before the server's.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.registry import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.client.connect import Client
    from cutlayer.types import Cut

TABLE: Final = "measured.json"
UNDEFENDED: Final = "none"

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one attack read at one setting."""

    model: str
    """As it is written in the sentence; compared without regard to case."""
    cut_start: Annotated[int, msgspec.Meta(ge=0)]
    """k"""
    defence: str
    """Specification."""
    attack: str
    """Specification."""
    token_accuracy: _Share
    low: _Share
    """Of the 95 % interval."""
    high: _Share
    n: Annotated[int, msgspec.Meta(ge=1)]
    """Prompts."""
    record: str
    """Name of the record it is taken from."""


@cache
def table() -> tuple[Measured, ...]:
    """All that has been measured."""
    data = files("cutlayer.audit").joinpath(TABLE).read_bytes()
    return msgspec.json.decode(data, type=tuple[Measured, ...])


def statement(model: str, cut: Cut, defence: str, entries: Sequence[Measured] | None = None) -> str:
    """What a server reads at this setting, or that nobody has measured it.

    Args:
        model: pulled name or directory name.
        cut: where it is cut.
        defence: specification.
        entries: to look in; None is `table`.
    """
    known = table() if entries is None else entries
    ours = [entry for entry in known if entry.model.casefold() == model.casefold()]
    under = [entry for entry in ours if _same(entry.defence, defence)]
    exact = [entry for entry in under if entry.cut_start == cut.head_layers]
    if exact:
        return f"Measured: {_words(_strongest(exact))}."
    if under:
        nearest = min(abs(entry.cut_start - cut.head_layers) for entry in under)
        closest = _strongest([entry for entry in under if abs(entry.cut_start - cut.head_layers) == nearest])
        return f"Not measured at k={cut.head_layers}. Nearest measured: {_words(closest)}."
    run = f"cutlayer audit run {model} --cut {cut} --defence {defence}"
    return f"Not measured for this setting: run `{run}`; {_undefended(known)}."


def statement_for(client: Client) -> str:
    """`statement` about a connected client. The model's name is this machine's: a server may call it what it likes."""
    return statement(client.directory.name, client.cut, client.defence.describe())


def _undefended(known: Sequence[Measured]) -> str:
    """What the table says about doing nothing, over all models."""
    cuts: dict[tuple[str, int], list[Measured]] = {}
    for entry in known:
        if entry.defence == UNDEFENDED:
            cuts.setdefault((entry.model.casefold(), entry.cut_start), []).append(entry)
    if not cuts:
        return "no other setting has been measured either"
    worst = [_strongest(entries) for entries in cuts.values()]
    least = min(entry.token_accuracy for entry in worst)
    depths = ", ".join(map(str, sorted({entry.cut_start for entry in worst})))
    extent = "fully" if least == 1 else f"to at least {_percent(least, math.floor)} % of tokens"
    return f"undefended hidden states of models with public weights were {extent} readable at every cut measured (k = {depths})"


def _strongest(entries: Sequence[Measured]) -> Measured:
    return max(entries, key=lambda entry: entry.token_accuracy)


def _words(entry: Measured) -> str:
    defended = "undefended" if entry.defence == UNDEFENDED else f"under {entry.defence}"
    interval = f"{_percent(entry.low, math.floor)}–{_percent(entry.high, math.ceil)} %"
    return (
        f"at k={entry.cut_start} {defended}, a server reads {_percent(entry.token_accuracy, math.floor)} % ({interval}) of "
        f"prompt tokens ({entry.attack}, {entry.n} prompts, {entry.model})"
    )


def _percent(share: float, towards: Callable[[float], int]) -> str:
    """With one decimal, rounded so that only 1 becomes 100 and no interval is drawn too narrow.

    Examples:
        >>> _percent(0.99996, math.floor), _percent(1.0, math.floor), _percent(0.5, math.ceil)
        ('99.9', '100', '50')
    """
    return f"{towards(round(share * 1000, 6)) / 10:g}"


def _same(one: str, other: str) -> bool:
    """Whether two specifications name the same mechanism with the same options, however numbers are written."""
    first, second = Spec.parse(one), Spec.parse(other)
    return first.name == second.name and _values(first) == _values(second)


def _values(spec: Spec) -> dict[str, str | float]:
    values: dict[str, str | float] = {}
    for key, text in spec.options.items():
        try:
            values[key] = float(text)
        except ValueError:
            values[key] = text
    return values
