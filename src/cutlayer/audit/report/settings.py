"""The settings a user could choose (a cut with a defence), each judged by the attack that read most.

A setting is as good as its worst cell. One that no attack adapted to the defence was tried on is not judged at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.audit.grid import ADAPTED
from cutlayer.registry import Spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cutlayer.audit.cell_record import CellRecord, ClientCost
    from cutlayer.records.record import Figure

MAX_ADVANTAGE: Final = 0.25
MAX_PERPLEXITY_INCREASE: Final = 0.05


class Bar(NamedTuple):
    """What a setting must meet to be called defended."""

    advantage: float = MAX_ADVANTAGE
    """Most advantage of any attack over the baseline, in tokens."""
    perplexity_increase: float = MAX_PERPLEXITY_INCREASE
    """Most relative increase of perplexity."""
    content_advantage: float = 0.2
    """As `advantage`, of words that carry content."""
    canaries: float = 0.01
    """Most planted secrets read whole, as a share."""

    def __str__(self) -> str:
        return (
            f"advantage at most {self.advantage:g} (of content words {self.content_advantage:g}), planted secrets read at most "
            f"{100 * self.canaries:g} %, perplexity increase at most {100 * self.perplexity_increase:g} %"
        )


class Setting(NamedTuple):
    """A cut with a defence, and what was measured there."""

    cut: str
    defence: str
    cells: list[CellRecord]
    """With figures."""
    without: list[CellRecord]
    """Failed, or not applicable."""
    client: ClientCost

    @property
    def name(self) -> str:
        """In words."""
        return f"cut {self.cut} with defence {self.defence}"

    @property
    def worst(self) -> CellRecord | None:
        """The cell that reads most; None if nothing was measured."""
        return max(self.cells, key=_readable, default=None)

    @property
    def leakage(self) -> Figure | None:
        """The greatest advantage of any attack."""
        return self.worst.leakage if self.worst else None

    @property
    def perplexity_increase(self) -> Figure | None:
        """What the defence costs in perplexity, if it was measured."""
        found = [cell.figures["perplexity_increase"] for cell in self.cells if "perplexity_increase" in cell.figures]
        return max(found, key=lambda figure: figure.value, default=None)

    @property
    def adapted(self) -> bool:
        """Whether an attack that uses the defence's law was tried."""
        return any(Spec.parse(record.cell.attack).name in ADAPTED for record in self.cells)

    def worst_of(self, key: str) -> Figure | None:
        """The greatest figure of that name over all attacks."""
        found = [record.figures[key] for record in self.cells if key in record.figures]
        return max(found, key=lambda figure: figure.value, default=None)

    def shortcomings(self, bar: Bar) -> list[str]:
        """Why the setting does not meet the bar, or is not known to; empty if it does."""
        reasons = []
        if not self.cells:
            reasons.append("nothing was measured")
        elif not self.adapted:
            reasons.append(
                f"only attacks that ignore the defence were tried ({', '.join(sorted(_attacks(self.cells)))})"
            )
        if any(record.config.status == "error" for record in self.without):
            reasons.append("an attack failed to run")
        if any(record.leakage is None for record in self.cells):
            reasons.append("an attack's advantage could not be measured")
        for key, bound, words in (
            ("advantage", bar.advantage, "advantage"),
            ("content_advantage", bar.content_advantage, "advantage on content words"),
            ("canary_exact_match", bar.canaries, "share of planted secrets read"),
            ("perplexity_increase", bar.perplexity_increase, "perplexity increase"),
        ):
            figure = self.worst_of(key)
            if figure is not None and figure.value > bound:
                reasons.append(f"{words} {figure.value:.2f} is above {bound:g}")
        if self.cells and self.defence != "none" and self.perplexity_increase is None:
            reasons.append("its cost in perplexity was not measured (--utility)")
        return reasons


def settings_of(records: Iterable[CellRecord]) -> list[Setting]:
    """The settings of a directory, in the order of its records."""
    grouped: dict[object, list[CellRecord]] = {}
    for record in records:
        grouped.setdefault(record.cell.setting, []).append(record)
    return [
        Setting(
            cut=found[0].cell.cut,
            defence=found[0].cell.defence,
            cells=[record for record in found if record.complete],
            without=[record for record in found if not record.complete],
            client=found[0].config.client,
        )
        for found in grouped.values()
    ]


def _readable(record: CellRecord) -> tuple[float, float]:
    accuracy = record.figures.get("token_accuracy")
    return (
        record.leakage.value if record.leakage else float("-inf"),
        accuracy.value if accuracy else float("-inf"),
    )


def _attacks(records: Iterable[CellRecord]) -> set[str]:
    return {Spec.parse(record.cell.attack).name for record in records}
