"""What packing bfloat16 weights gains: time of steps of one row to many, plain, packed as it ships, and packed with rows filled
up where it ships without, or the reverse, in turn; and how far the states of each are from those of float32.

Prints and writes the record ``packed``, on a processor without tiles ``packed_without_tiles``.
"""

from __future__ import annotations

import os
import time
from typing import Annotated, Any
from unittest.mock import patch

import torch
from cyclopts import App, Parameter
from rich.progress import track

from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.packed import FILLED, FILLED_WITH_TILES
from cutlayer.models.pages import PagePool, PageTable
from cutlayer.models.parts import load_body
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.models.weights import keep_weights
from cutlayer.records.record import Figure, exact, median, new_record
from cutlayer.types import Cut
from report import command, finish

app = App(help=__doc__)

_OTHER = "unfilled" if FILLED else "filled"
_OTHERWISE = range(0) if FILLED else FILLED_WITH_TILES
TIMED = ("plain", "packed", _OTHER)
STEPS = 3
"""Of one body in a row."""


@app.default
def packed(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    rows: tuple[int, ...] = (1, 2, 4, 9, 16, 18, 24, 32, 48, 128),
    context: int = 128,
    rounds: int = 25,
    threads: int = 1,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    rows
        Of a step of one session: 1 is sequential decoding, tens are a tree being verified, hundreds a prompt.
    context
        Positions held before.
    rounds
        Steps of each kind.
    threads
        Of torch.
    write
        Whether to write the record.
    """
    torch.set_num_threads(threads)
    directory = locate(model)
    span = Cut.parse(cut, read_config(directory).num_hidden_layers)
    bodies = {name: load_body(directory, span, torch.bfloat16) for name in ("plain", "packed")}
    started = time.perf_counter()
    keep_weights(bodies["packed"], "dtype")
    packing_s = time.perf_counter() - started
    bodies["float32"] = load_body(directory, span, torch.float32)
    figures: dict[str, Figure] = {"packing_s": exact(packing_s, "s")}
    samples: dict[str, list[Any]] = {}
    drawn = torch.Generator().manual_seed(0)
    width = bodies["plain"].shell.config.hidden_size
    most = context + max(rows)

    def states(count: int) -> torch.Tensor:
        return torch.randn(count, width, generator=drawn).bfloat16()  # [T, D]

    runs: dict[str, tuple[RaggedBody, PageTable]] = {}
    before = states(context)
    for name, body in bodies.items():
        pool = PagePool(body.layers, most + 32)
        runs[name] = RaggedBody(body, pool), PageTable(pool, "somebody", most)
        runs[name][0]([Chunk(runs[name][1], before.float() if name == "float32" else before)])
    errors: dict[str, list[float]] = {name: [] for name in TIMED}
    for count in rows:
        taken: dict[str, list[float]] = {name: [] for name in TIMED}
        for _ in track(range(rounds), description=f"{count} rows"):
            step, found = states(count), {}
            for name in TIMED:
                filled = _OTHERWISE if name == _OTHER else FILLED
                ragged, table = runs["plain" if name == "plain" else "packed"]
                with patch("cutlayer.models.packed.FILLED", filled):
                    for _ in range(STEPS):  # the last is timed: a server has one body, whose weights caches partly hold
                        started = time.perf_counter()
                        found[name] = ragged([Chunk(table, step)])[0]
                        seconds = time.perf_counter() - started
                        table.rollback(context)
                taken[name].append(seconds * 1e3)
        ragged, table = runs["float32"]
        truth = ragged([Chunk(table, step.float())])[0]  # [T, D]
        table.rollback(context)
        for name, hidden in found.items():
            errors[name] += ((hidden.float() - truth).norm(dim=-1) / truth.norm(dim=-1)).tolist()
        for name, own in taken.items():
            samples[f"{name}_ms_{count}"] = own
            figures[f"{name}_ms_{count}"] = median(own, "ms")
        for other in ("plain", *([_OTHER] if count in FILLED_WITH_TILES else [])):
            ratios = [a / b for a, b in zip(taken["packed"], taken[other], strict=True)]
            figures[f"packed_over_{other}_{count}"] = median(ratios, "ratio")
    for name, own in errors.items():
        samples[f"{name}_error"] = own
        figures[f"{name}_error"] = median(own, "relative")
    record = new_record(
        "packed" if FILLED else "packed_without_tiles",
        command("packed"),
        {
            "model": model, "cut": str(span), "dtype": "bfloat16", "context": context, "rounds": rounds,
            "step": f"rows of one session after the context, rolled back; the last of {STEPS}, all ways in turn",
            "threads": torch.get_num_threads(), "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
            "load_average": os.getloadavg(),
        },
        figures,
        samples,
    )  # fmt: skip
    finish(record, write=write)


if __name__ == "__main__":
    app()
