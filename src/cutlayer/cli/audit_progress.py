"""How an audit goes, on stderr: a bar with the time left, and a line for every cell that is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from cutlayer.audit.request import Event

_MARKS: Final = {
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "skipped": ("·", "dim"),
    "not applicable": ("–", "yellow"),
}


class AuditProgress:
    """Told of every event; a context manager that owns the bar.

    Args:
        out: directory of the records, for the message on interruption.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._console = Console(stderr=True, highlight=False)
        self._shares: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("loading", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            words = f"interrupted; what is finished stays in {self._out}, and the same command goes on from there"
            self._console.print(words, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show it. Every cell is announced with a share of 0 before the first is measured."""
        self._shares[event.cell.key] = event.share
        if event.kind in _MARKS:
            mark = _MARKS[event.kind]
            detail = f": {event.detail}" if event.detail else ""
            self._console.print(Text.assemble(mark, f" {event.cell}{detail}"), soft_wrap=True)
        at = f"{event.cell.attack} on {event.cell.cut}, {event.cell.defence}" if event.share else "loading"
        self._bar.update(self._task, description=at, completed=sum(self._shares.values()), total=len(self._shares))
