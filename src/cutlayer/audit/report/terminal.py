"""The report in a terminal: a table of cells, what is missing, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from cutlayer.audit.report.settings import Bar, settings_of
from cutlayer.audit.report.words import named, percent, verdict, with_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.audit.report.settings import Setting

_OPTIONAL: Final = {"content_accuracy": "content words", "canary_exact_match": "secrets"}


def show_report(records: Sequence[CellRecord], console: Console, bar: Bar | None = None) -> None:
    """Print cells, gaps and verdict.

    Args:
        records: at least one.
        console: where to.
        bar: what settings are held against; None is the project's own.
    """
    settings = settings_of(records)
    config = records[0].config
    prompts, owned = config.prompts, config.owned
    console.print(
        Text(
            f"{named(config.model)} · {prompts.count} prompts of {prompts.shortest}–{prompts.longest} tokens "
            f"({prompts.source}) · {config.repeats} session{'' if config.repeats == 1 else 's'} each\n"
            f"attacker's own text: {f'{owned.pairs:,} tokens ({owned.source})' if owned else 'none'}",
            style="dim",
        )
    )
    if any(setting.cells for setting in settings):
        console.print(_cells(settings))
    for record in (record for setting in settings for record in setting.without):
        style = "bold red" if record.config.status == "error" else "yellow"
        status = "failed" if record.config.status == "error" else record.config.status
        console.print(Text.assemble((f"{status}: ", style), f"{record.cell}: {record.config.reason}"))
    said = verdict(settings, bar or Bar())
    console.print()
    console.print(Text(said.headline, style="bold"))
    for sentence in said.rest:
        console.print(Text(sentence))


def _cells(settings: Sequence[Setting]) -> Table:
    records = [record for setting in settings for record in setting.cells]
    threats = len({record.cell.threat for record in records}) > 1
    optional = {key: title for key, title in _OPTIONAL.items() if any(key in record.figures for record in records)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting and attack", overflow="fold", min_width=20)
    for heading in ("tokens read", "advantage", *optional.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for setting in settings:
        if setting.cells:
            table.add_row(Text(f"cut {setting.cut}, {setting.defence}", style="bold"))
        for record in setting.cells:
            accuracy, advantage = record.figures.get("token_accuracy"), record.leakage
            name = f"  {record.cell.attack}" + (f" ({record.cell.threat})" if threats else "")
            columns = [with_interval(accuracy) if accuracy else "not measured"]
            columns.append(f"{advantage.value:.2f}" if advantage else "not measured")
            columns += [percent(record.figures[key].value) if key in record.figures else "–" for key in optional]
            table.add_row(*map(Text, (name, *columns)), style="red" if record is setting.worst else "")
    return table
