"""The report as plain values, for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cutlayer.audit.report.settings import Bar, settings_of
from cutlayer.audit.report.words import verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.records.record import Figure


def cells_of(records: Iterable[CellRecord]) -> dict[str, Any]:
    """``{"cells": [{"cut", "defence", "attack", "threat", "figures": {KEY: value}, "intervals": {KEY: [low, high]}, …}]}``."""
    return {"cells": [_cell(record) for record in records]}


def report_of(records: Sequence[CellRecord], bar: Bar | None = None) -> dict[str, Any]:
    """Cells, settings and the verdict.

    Args:
        records: of one directory.
        bar: what settings are held against; None is the project's own.
    """
    against = bar or Bar()
    settings = settings_of(records)
    return {
        "verdict": list(verdict(settings, against)),
        "bar": against._asdict(),
        "settings": [
            {
                "cut": setting.cut,
                "defence": setting.defence,
                "meets_bar": not setting.shortcomings(against),
                "shortcomings": setting.shortcomings(against),
                "best_attack": setting.worst.cell.attack if setting.worst else None,
                "advantage": number(setting.leakage),
                "perplexity_increase": number(setting.perplexity_increase),
                "client_layers": setting.client.layers,
                "client_bytes": setting.client.bytes,
            }
            for setting in settings
        ],
        **cells_of(records),
    }


def number(figure: Figure | None) -> dict[str, float] | None:
    """Value and interval."""
    return None if figure is None else {"value": figure.value, "low": figure.low, "high": figure.high}


def _cell(record: CellRecord) -> dict[str, Any]:
    cell, config = record.cell, record.config
    return {
        "cut": cell.cut,
        "defence": cell.defence,
        "attack": cell.attack,
        "threat": cell.threat,
        "status": config.status,
        **({"reason": config.reason} if config.reason else {}),
        "figures": {key: figure.value for key, figure in record.figures.items()},
        "intervals": {key: [figure.low, figure.high] for key, figure in record.figures.items()},
        "n": config.prompts.count,
        "unmeasured": config.unmeasured,
        "record": f"{record.record.name}.json",
    }
