"""`audit gate` as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from cutlayer.audit.gate import Judgement

_MARKS: Final = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "error": ("✗", "bold red"), "skip": ("–", "yellow")}


def show_judgement(judgement: Judgement, console: Console) -> None:
    """Print every cell, what to know, and the result."""
    for check in judgement.checks:
        console.print(Text.assemble(_MARKS[check.outcome], f" {check.cell}: {check.words}"), soft_wrap=True)
    for warning in judgement.warnings:
        console.print(Text.assemble(("! ", "yellow"), warning), soft_wrap=True)
    bad = sum(check.outcome in ("fail", "error") for check in judgement.checks)
    if judgement.passed:
        console.print(Text("passed", style="bold green"))
    else:
        console.print(Text(f"failed: {bad} of {len(judgement.checks)} cells", style="bold red"))
