"""`cutlayer pull`: fetch a model once."""

from __future__ import annotations

import sys


def pull(name: str, /, *, quiet: bool = False) -> int:
    """Fetch a model into this machine's cache and convert it once.

    Repeating it is free; an interrupted download resumes. The last line printed is the model's directory.

    Args:
        name: the model to fetch, e.g. smollm2-135m.
        quiet: show no progress.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    from cutlayer.store.pull import Stage
    from cutlayer.store.pull import pull as fetch_and_convert

    console = Console(stderr=True)
    tasks: dict[Stage, TaskID] = {}
    texts = {
        Stage.WAIT: "waiting for another pull of it",
        Stage.DOWNLOAD: "downloading",
        Stage.CONVERT: "converting (about half a minute)",
    }
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
    ) as bars:

        def show(stage: Stage, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{name}: {texts[stage]}", total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        directory = fetch_and_convert(name, show)
    sys.stdout.write(f"{directory}\n")
    return 0
