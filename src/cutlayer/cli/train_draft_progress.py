"""How the making of a draft head goes, on stderr: one bar for the data, one for the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from cutlayer.client.speculation.head.checkpoint import Progress as Training


class TrainProgress:
    """Told of every text and every step; a context manager that owns the bars.

    Args:
        folder: of data and checkpoints, for the message on interruption.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._data = self._bars.add_task("gathering texts", total=None)
        self._training = self._bars.add_task("training", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if kind is KeyboardInterrupt:
            words = f"interrupted; what there is stays in {self._folder}, and the same command goes on"
            self._console.print(words, markup=False, soft_wrap=True)

    def collecting(self, total: int) -> None:
        """So many texts are wanted."""
        self._bars.update(self._data, total=total)

    def collected(self, _: object) -> None:
        """One more is there."""
        self._bars.advance(self._data)

    def trained(self, step: int, total: int, training: Training) -> None:
        """A step is done."""
        held = f"training, {training.acceptance[-1]:.2f} tokens per round trip held out"
        self._bars.update(self._training, description=held, completed=step, total=total, visible=True)
