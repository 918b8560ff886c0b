"""An audit of the key cut in words and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cutlayer.audit.keycut.run import strongest
from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cutlayer.audit.keycut.run import Outcome
    from cutlayer.records.record import Figure

_SURE: Final = 0.9
PUBLISHED: Final = (
    "Published for the paper's own attacks on models of 8 to 671 billion parameters: 2.6 to 25 % of tokens."
)


def show(outcomes: Sequence[Outcome], source: str, console: Console) -> None:
    """A table for hosts with the base model and one for hosts without, and what they mean."""
    from rich.table import Table

    for title, part in (
        ("With the base model", [one for one in outcomes if one.needs_base]),
        ("Without it", [one for one in outcomes if not one.needs_base]),
    ):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for heading in ("", "attack", "of ids", "of tokens sent"):
            table.add_column(heading, no_wrap=True)
        for one in part:
            table.add_row(one.label, one.attack, *(_share(one.figures[share]) for share in ("ids", "occurrences")))
        console.print(table)
        for one in part:
            if one.facts and isinstance(one.figures["ids"], Unmeasured):
                facts = ", ".join(f"{name} {value:.3g}" for name, value in one.facts.items())
                console.print(f"{one.attack} sees by itself: {facts}")
        console.print()
    reasons = (figure.reason for one in outcomes for figure in one.figures.values() if isinstance(figure, Unmeasured))
    for reason in dict.fromkeys(reasons):
        console.print(f"–: {reason}")
    console.print(f"Text: {source}.")
    for line in verdict(outcomes):
        console.print(line)


def verdict(outcomes: Sequence[Outcome]) -> list[str]:
    """What a host reads."""
    lines = []
    for who, with_base in (("has the base model", True), ("does not have the base model", False)):
        worst = strongest(outcomes, with_base=with_base)
        if worst is None:
            lines.append(f"A host that {who}: not measured.")
        else:
            share = _share(worst.figures["occurrences"])
            lines.append(f"A host that {who} reads {share} of the tokens sent, by {worst.attack} ({worst.label}).")
    clx = next((one for one in outcomes if "channel_cosine" in one.facts), None)
    if clx is not None:
        fell = clx.facts["channel_cosine"] > _SURE and clx.facts["channels_named"] > _SURE
        lines.append(
            "The hidden keys fell: products of feed-forward blocks match this base, which it takes no key to see."
            if fell
            else "Products of feed-forward blocks do not match this base: the export was made from another model, or from one "
            "that was changed very much."
        )
    return [*lines, PUBLISHED]


def plain(outcomes: Sequence[Outcome], source: str) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "traffic": source,
        "attacks": outcomes,
        "with_base": strongest(outcomes, with_base=True),
        "without_base": strongest(outcomes, with_base=False),
        "verdict": verdict(outcomes),
    }


def _share(figure: Figure | Unmeasured) -> str:
    if isinstance(figure, Unmeasured):
        return "–"
    return f"{figure.value:.1%} [{100 * figure.low:.1f}, {100 * figure.high:.1f}] n={figure.n}"
