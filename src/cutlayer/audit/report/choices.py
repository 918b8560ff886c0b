"""`audit recommend` as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from cutlayer.audit.recommendation import Candidate, Recommendation


def show_recommendation(recommendation: Recommendation, console: Console) -> None:
    """Print the settings, best first, and the choice."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, width in (("cut and defence", 21), ("attack", 8)):
        table.add_column(heading, overflow="fold", min_width=width)
    for heading in ("advantage", "perplexity", "client GB", "front"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in recommendation.candidates:
        setting = one.setting
        table.add_row(
            *map(
                Text,
                (
                    f"{setting.cut}, {setting.defence}",
                    setting.worst.cell.attack if setting.worst else "–",
                    f"{one.advantage:.2f}",
                    _signed(one.perplexity_increase),
                    f"{one.client_bytes / 1e9:.2f}",
                    "yes" if one.frontier else "",
                ),
            ),
            style="bold" if one is recommendation.chosen else "",
        )
    if recommendation.candidates:
        console.print(table)
    console.print(Text(recommendation.words, style="bold"))


def _signed(increase: float | None) -> str:
    return "not measured" if increase is None else f"{round(100 * increase, 1) + 0.0:+.1f} %"


def plain_recommendation(recommendation: Recommendation) -> dict[str, Any]:
    """For other programs."""
    chosen = recommendation.chosen
    return {
        "chosen": None if chosen is None else _plain(chosen),
        "words": recommendation.words,
        "settings": [_plain(one) for one in recommendation.candidates],
    }


def _plain(one: Candidate) -> dict[str, Any]:
    return {
        "cut": one.setting.cut,
        "defence": one.setting.defence,
        "best_attack": one.setting.worst.cell.attack if one.setting.worst else None,
        "advantage": one.advantage,
        "perplexity_increase": one.perplexity_increase,
        "client_bytes": one.client_bytes,
        "client_layers": one.setting.client.layers,
        "frontier": one.frontier,
        "shortcomings": one.shortcomings,
    }
