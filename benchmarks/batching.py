"""How a server's throughput grows with its sessions, and what one long prefill does to the others.

Load: hidden states computed beforehand, from another process; every session asks for its next position once it has the last.
Prints and writes the record ``batching`` and draws docs/figures/batching.svg from it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from cyclopts import App, Parameter

from cutlayer.cli.server_process import ServerProcess
from cutlayer.models.locate import locate
from cutlayer.models.parts import load_body
from cutlayer.records.record import Figure, Record, exact, median, new_record, quantile, read_record
from cutlayer.types import Cut, DtypeName, check_dtype
from load import Load, apply_load, encoded_rows
from report import RECORDS, ROOT, command, finish

app = App(help=__doc__)
CHATTING = 8


@app.default
def batching(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    dtypes: tuple[str, ...] = ("bfloat16", "float32"),
    sessions: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    context: int = 128,
    stretch: int = 256,
    seconds: float = 4.0,
    rounds: int = 3,
    prefill: int = 4000,
    write: bool = True,
    redraw: bool = False,
) -> None:
    """Measure, record and draw.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    dtypes
        Of the server; the first is the one the headline figures are of.
    sessions
        How many at a time.
    context
        Positions each holds before it decodes.
    stretch
        Positions it decodes before it rolls back to its context.
    seconds
        Of each measurement.
    rounds
        How often each is repeated, all counts in turn, so that a slow moment of the machine hits all of them.
    prefill
        Positions of the ninth session's prompt.
    write
        Whether to write the record.
    redraw
        Only draw the committed record again.
    """
    chart = ROOT / "docs" / "figures" / "batching.svg"
    if redraw:
        draw(read_record(RECORDS / "batching.json"), chart)
        return
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    bandwidth = _bandwidth()
    figures["memory_bandwidth"] = exact(bandwidth / 1e9, "GB/s")
    curves: dict[str, Any] = {}
    for dtype in map(check_dtype, dtypes):
        rows, row_bytes = encoded_rows(model, cut, dtype)
        body = load_body(locate(model), Cut.parse(cut, 30), getattr(torch, dtype))
        config = body.shell.config
        kv = 2 * body.layers * config.num_key_value_heads * config.head_dim * getattr(torch, dtype).itemsize
        curves[dtype] = {"weight_bytes": body.weight_bytes(), "kv_bytes_per_position": kv, "rate": {}}
        del body
        options = (f"--dtype={dtype}", "--max-sessions=128", "--cache-positions=131072")
        with ServerProcess(model, cut, options) as server:
            load = Load(server.url, server.client_keys, dtype, rows, row_bytes, 1, context, stretch, 2.0)
            apply_load(load._replace(sessions=max(sessions)))  # warm up: allocate all the pages that will be used
            process = psutil.Process(server.pid)
            warm = process.memory_info().rss
            rates: dict[int, list[float]] = {count: [] for count in sessions}
            taken: dict[int, list[float]] = {count: [] for count in sessions}
            for _ in range(rounds):
                for count in sessions:
                    measured = apply_load(load._replace(sessions=count, seconds=seconds))
                    steps = [one for session in measured.latencies for one in session]
                    rates[count].append(len(steps) / measured.seconds)
                    taken[count] += steps
                    sys.stderr.write(f"{dtype} {count} sessions: {rates[count][-1]:.1f} positions/s\n")
            for count in sessions:
                figures[f"{dtype}_positions_per_s_{count}"] = median(rates[count], "positions/s")
                figures[f"{dtype}_step_ms_p50_{count}"] = _ms(taken[count], 0.5)
                samples[f"{dtype}_positions_per_s_{count}"] = rates[count]
                curves[dtype]["rate"][str(count)] = figures[f"{dtype}_positions_per_s_{count}"].value
                if 1 in rates:  # of each round, against the same round
                    paired = [many / one for many, one in zip(rates[count], rates[1], strict=True)]
                    figures[f"{dtype}_speedup_{count}_sessions"] = median(paired, "ratio")
                    samples[f"{dtype}_speedup_{count}_sessions"] = paired
            figures[f"{dtype}_memory_growth_after_warm_up"] = exact(process.memory_info().rss / warm - 1, "relative")
            _isolation(load._replace(sessions=CHATTING, seconds=4 * seconds), prefill, dtype, figures, samples)
    for count in (8, 32):
        name = f"{dtypes[0]}_speedup_{count}_sessions"
        if name in figures:
            figures[f"speedup_{count}_sessions"] = figures[name]
    record = new_record(
        "batching",
        command("batching"),
        {
            "model": model, "cut": cut, "dtypes": dtypes, "headline": dtypes[0], "context": context, "stretch": stretch,
            "seconds": seconds, "rounds": rounds, "prefill": prefill, "chatting": CHATTING, "curves": curves,
            "threads": torch.get_num_threads(), "load": "one process, one thread, TLS on loopback",
        },
        figures,
        samples,
    )  # fmt: skip
    finish(record, write=write)
    if write:
        draw(record, chart)


def _isolation(
    load: Load, prefill: int, dtype: DtypeName, figures: dict[str, Figure], samples: dict[str, list[Any]]
) -> None:
    """Decode steps of several sessions without and with another one that prefills, in turn."""
    for name, positions in (("quiet", 0), ("beside_prefill", prefill)):
        measured = apply_load(load._replace(prefill=positions))
        steps = [taken for session in measured.latencies for taken in session]
        figures[f"{dtype}_step_ms_p99_{name}"] = _ms(steps, 0.99)
        samples[f"{dtype}_step_ms_{name}"] = [round(taken * 1e3, 2) for taken in steps]
        if positions:
            figures[f"{dtype}_prefill_positions_per_s"] = exact(measured.prefilled / measured.seconds, "positions/s")
    ratio = figures[f"{dtype}_step_ms_p99_beside_prefill"].value / figures[f"{dtype}_step_ms_p99_quiet"].value
    figures[f"{dtype}_p99_beside_prefill_over_quiet"] = exact(ratio, "ratio")
    sys.stderr.write(f"{dtype} p99 beside a prefill over p99 without: {ratio:.2f}\n")


def _ms(seconds: list[float], q: float) -> Figure:
    return quantile([taken * 1e3 for taken in seconds], q, "ms")


def _bandwidth() -> float:
    """Bytes per second of reading memory, the best of several passes over a gigabyte."""
    data = torch.ones(1 << 28)  # 1 GiB
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - started))
    return best


def draw(record: Record, path: Path) -> None:
    """Throughput against sessions, with what memory bandwidth alone would allow."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    bandwidth = record.figures["memory_bandwidth"].value * 1e9
    positions = record.config["context"] + record.config["stretch"] / 2
    chart, panel = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    for number, (dtype, curve) in enumerate(record.config["curves"].items()):
        counts = [int(count) for count in curve["rate"]]
        panel.plot(counts, list(curve["rate"].values()), "o-", color=f"C{number}", label=f"{dtype}, measured")
        read = [curve["weight_bytes"] + n * positions * curve["kv_bytes_per_position"] for n in counts]
        limit = [n * bandwidth / size for n, size in zip(counts, read, strict=True)]
        panel.plot(counts, limit, "--", color=f"C{number}", label=f"{dtype}, if reading memory were all")
    panel.set(xscale="log", yscale="log", xlabel="sessions", ylabel="decoded positions per second, all sessions")
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.minorticks_off()
    panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    app()
