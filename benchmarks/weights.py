"""What keeping the server's weights in fewer bits costs: memory, quality of the next token, and time of a decode step.

Every way of keeping them runs in this process, quality on the same text, steps in turn, so that whatever else the machine does
hits all alike. Whether compiling the layers' feed-forward parts would help is measured in the same rounds.
Prints and writes the record ``weights``.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import App, Parameter
from rich.progress import track

from cutlayer.corpora.split import study_documents
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.pages import PagePool, PageTable
from cutlayer.models.parts import Body, load_body, load_client
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.models.weights import WeightsName, keep_weights, stored_bytes
from cutlayer.records.record import Figure, exact, median, new_record
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.types import Cut
from next_token import Middle, next_token
from report import command, finish

app = App(help=__doc__)


class Way(NamedTuple):
    """How a body is kept."""

    dtype: torch.dtype
    weights: WeightsName
    compiled: bool = False


WAYS = {
    "float32": Way(torch.float32, "dtype"),
    "bfloat16": Way(torch.bfloat16, "dtype"),
    "int8": Way(torch.float32, "int8"),
    "int8_bfloat16": Way(torch.bfloat16, "int8"),
    "float32_compiled": Way(torch.float32, "dtype", compiled=True),
    "bfloat16_compiled": Way(torch.bfloat16, "dtype", compiled=True),
    "int8_compiled": Way(torch.float32, "int8", compiled=True),
}
REFERENCE = "float32"


@app.default
def weights(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    documents: int = 32,
    tokens: int = 128,
    rounds: int = 40,
    context: int = 128,
    sessions: tuple[int, ...] = (1, 8),
    threads: int = 0,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    documents
        Encyclopedia leads that quality is measured on.
    tokens
        Of each, at most.
    rounds
        Decode steps of every way.
    context
        Positions each session holds before.
    sessions
        Counts of sessions that share a step.
    threads
        Of torch; 0 leaves its default.
    write
        Whether to write the record.
    """
    if threads:
        torch.set_num_threads(threads)
    directory = locate(model)
    span = Cut.parse(cut, read_config(directory).num_hidden_layers)
    texts = _texts(directory, documents, tokens)
    client = load_client(directory, span, torch.float32)
    figures: dict[str, Figure] = {}
    bodies: dict[str, Body] = {}
    for name, way in WAYS.items():
        bodies[name] = load_body(directory, span, way.dtype)
        keep_weights(bodies[name], way.weights)
        if not way.compiled:
            figures[f"{name}_weight_bytes"] = exact(stored_bytes(bodies[name]), "bytes")
    for name in ("bfloat16", "int8", "int8_bfloat16"):
        figures[f"{name}_over_float32_bytes"] = exact(
            figures[f"{name}_weight_bytes"].value / figures["float32_weight_bytes"].value, "ratio"
        )
    plain = {name: _middle(bodies[name], way.dtype) for name, way in WAYS.items() if not way.compiled}
    quality, samples = next_token(client, plain, texts)
    figures |= quality
    first_s = _steps(bodies, sessions, rounds, context, figures, samples)
    record = new_record(
        "weights",
        command("weights"),
        {
            "model": model,
            "cut": str(span),
            "torchao": version("torchao"),
            "int8": "torchao Int8WeightOnlyConfig: symmetric, one scale per output row, activations in the dtype",
            "ways": {n: {"dtype": str(w.dtype), "weights": w.weights, "compiled": w.compiled} for n, w in WAYS.items()},
            "compiled": "torch.compile(dynamic=True) of each layer's feed-forward part; attention is not compiled",
            "first_forward_s": first_s,
            "text": f"{documents} encyclopedia leads of the held-out part, at most {tokens} tokens each",
            "client": "float32 in all; hidden states are rounded to the body's dtype and back, as the wire would",
            "step": f"one position for each session after {context} held, all ways in turn, {rounds} rounds",
            "threads": torch.get_num_threads(),
            "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
            "load_average": os.getloadavg(),
        },
        figures,
        samples,
    )
    finish(record, write=write)


def _texts(directory: Path, documents: int, tokens: int) -> list[list[int]]:
    tokenizer = Tokenizer(directory)
    return [tokenizer.encode(document.text)[:tokens] for document in study_documents(documents)]


def _middle(body: Body, dtype: torch.dtype) -> Middle:
    def run(hidden: torch.Tensor) -> torch.Tensor:
        middle: torch.Tensor = body(hidden.to(dtype), body.new_cache())
        return middle.float()

    return run


@torch.inference_mode()
def _steps(
    bodies: dict[str, Body], sessions: tuple[int, ...], rounds: int, context: int, figures: dict[str, Figure],
    samples: dict[str, list[Any]],
) -> dict[str, float]:  # fmt: skip
    """Decode steps of all ways in turn; returns the seconds of each way's first forwards, compilation included."""
    drawn = torch.Generator().manual_seed(0)
    most = max(sessions)
    ragged: dict[str, tuple[RaggedBody, list[PageTable]]] = {}
    first: dict[str, float] = {}
    for name, body in bodies.items():
        width = body.shell.config.hidden_size
        if WAYS[name].compiled:
            for layer in body.shell.base_model.layers:
                layer.mlp.compile(dynamic=True)
        pool = PagePool(body.layers, most * (context + len(sessions) * (rounds + 8) + 32))
        one = RaggedBody(body, pool)
        tables = [PageTable(pool, "somebody", context + len(sessions) * (rounds + 8)) for _ in range(most)]
        started = time.perf_counter()
        for table in tables:
            one([Chunk(table, torch.randn(context, width, generator=drawn).to(WAYS[name].dtype))])
        for count in sessions:
            _step(one, tables[:count], width, WAYS[name].dtype, drawn)
        first[name] = round(time.perf_counter() - started, 2)
        ragged[name] = one, tables
    for count in sessions:
        taken: dict[str, list[float]] = {name: [] for name in ragged}
        for number in track(range(rounds + 3), description=f"{count} sessions"):
            for name, (one, tables) in ragged.items():
                seconds = _step(one, tables[:count], width, WAYS[name].dtype, drawn)
                if number >= 3:
                    taken[name].append(seconds * 1e3)
        for name, own in taken.items():
            samples[f"{name}_step_ms_{count}"] = own
            figures[f"{name}_step_ms_{count}"] = median(own, "ms")
            against = name.removesuffix("_compiled") if WAYS[name].compiled else REFERENCE
            if against != name:
                ratios = [a / b for a, b in zip(own, taken[against], strict=True)]
                figures[f"{name}_over_{against}_step_{count}"] = median(ratios, "ratio")
    return first


def _step(body: RaggedBody, tables: list[PageTable], width: int, dtype: torch.dtype, drawn: torch.Generator) -> float:
    rows = torch.randn(len(tables), 1, width, generator=drawn).to(dtype)
    started = time.perf_counter()
    body([Chunk(table, row) for table, row in zip(tables, rows, strict=True)])
    return time.perf_counter() - started


if __name__ == "__main__":
    app()
