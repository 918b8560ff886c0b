"""`cutlayer models`: what is pulled on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from cutlayer.store.listing import ModelInfo


def models(*, path: str | None = None, json: bool = False) -> int:
    """List the models on this machine.

    Args:
        path: print only the directory of the model of this name, as the last line.
        json: print one JSON list instead of a table.
    """
    from cutlayer import config
    from cutlayer.errors import ModelNotFoundError
    from cutlayer.models.locate import pulled_models

    if path is not None:
        names = pulled_models()
        if path not in names:
            here = ", ".join(names) or "none"
            raise ModelNotFoundError(f"no model {path!r} on this machine (here: {here}); run `cutlayer pull {path}`")
        sys.stdout.write(f"{config.models_directory() / path}\n")
        return 0

    import msgspec
    from rich.console import Console

    from cutlayer.store.catalogue import CATALOGUE
    from cutlayer.store.listing import installed

    found = installed()
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return 0
    console = Console()
    if found:
        console.print(_table(found))
        console.print(f"in {config.models_directory()}", highlight=False, soft_wrap=True)
    else:
        console.print(f"no models in {config.models_directory()}", highlight=False, soft_wrap=True)
    others = sorted(set(CATALOGUE) - {model.name for model in found})
    if others:
        console.print(f"to be had with `cutlayer pull NAME`: {', '.join(others)}", highlight=False)
    return 0


def _table(found: list[ModelInfo]) -> Table:
    from rich import box
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("name", "family"):
        table.add_column(heading, no_wrap=True)
    for heading in ("layers", "hidden", "parameters", "on disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for model in found:
        table.add_row(
            model.name,
            model.model_type,
            str(model.layers),
            str(model.hidden_size),
            f"{model.parameters / 1e6:,.1f} M",
            decimal(model.bytes),
            model.source,
        )
    return table
