"""An audit of the key cut in words and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cutlayer.audit.keycut.run import strongest
from cutlayer.audit.keycut.scoring import SHARES
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
    """A table, and what it means for a host with and without the base model."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "attack", "needs", "of ids", "of traffic", "of named", "by itself it sees"):
        table.add_column(heading)
    for one in outcomes:
        shares = [_share(one.figures[share]) for share in SHARES]
        facts = ", ".join(f"{name} {value:.3g}" for name, value in one.facts.items())
        table.add_row(one.label, one.attack, ", ".join(one.needs), *shares, facts)
    console.print(table)
    for reason in dict.fromkeys(
        f.reason for one in outcomes for f in one.figures.values() if isinstance(f, Unmeasured)
    ):
        console.print(f"–: {reason}")
    console.print(f"\nTraffic: {source}.")
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
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}] n={figure.n}"
