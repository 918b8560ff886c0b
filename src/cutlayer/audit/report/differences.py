"""`audit diff` as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from cutlayer.audit.report.plain import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cutlayer.audit.difference import Difference
    from cutlayer.records.record import Figure


def show_differences(differences: Sequence[Difference], console: Console) -> None:
    """Print a table of changes, second minus first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("cut", "defence", "attack", "threat"):
        table.add_column(heading, overflow="fold")
    for heading in ("tokens read", "advantage"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in differences:
        shown = (one.cell.cut, one.cell.defence, one.cell.attack, one.cell.threat)
        both = one.kind == "both"
        changes = (_change(one.token_accuracy, points=True), _change(one.advantage)) if both else (one.kind, "")
        table.add_row(*map(Text, (*shown, *changes)), style="bold" if one.clear else "")
    console.print(table)
    compared = [one for one in differences if one.kind == "both"]
    clear = sum(one.clear for one in compared)
    console.print(f"{len(compared)} cells in both, {clear} changed by more than the choice of prompts explains (bold).")
    unpaired = sum(not one.paired for one in compared)
    if unpaired:
        console.print(
            f"{unpaired} were measured on different prompts, so their differences are not paired and less certain."
        )


def plain_differences(differences: Sequence[Difference]) -> dict[str, Any]:
    """For other programs; changes are second minus first."""
    return {
        "cells": [
            {
                "cut": one.cell.cut,
                "defence": one.cell.defence,
                "attack": one.cell.attack,
                "threat": one.cell.threat,
                "in": one.kind,
                "paired": one.paired,
                "clear": one.clear,
                "token_accuracy": number(one.token_accuracy),
                "advantage": number(one.advantage),
            }
            for one in differences
        ]
    }


def _change(figure: Figure | None, *, points: bool = False) -> str:
    if figure is None:
        return "not measured"
    if points:
        return f"{100 * figure.value:+.1f} points ({100 * figure.low:+.1f} to {100 * figure.high:+.1f})"
    return f"{figure.value:+.2f} ({figure.low:+.2f} to {figure.high:+.2f})"
