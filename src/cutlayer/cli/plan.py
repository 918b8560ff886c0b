"""`cutlayer plan`: what each cut of a model costs, without loading its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

    from cutlayer.models.plan import Plan


def plan(
    model: str,
    /,
    *,
    cut: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    dtype: str = "bfloat16",
    context: int = 4096,
    rtt: float = 80.0,
    bandwidth: float = 100.0,
    uplink: float | None = None,
    client_memory: float | None = None,
    client_gbps: float = 35.0,
    server_gbps: float = 1000.0,
    client_ms: float | None = None,
    server_ms: float | None = None,
    json: bool = False,
) -> int:
    """What each cut of a model costs in memory, bytes and tokens per second.

    Args:
        model: a pulled model, a directory, hf:ORG/NAME, or the path of a config.json.
        cut: a further cut A:B to cost beside k = m = 0, 1, 2, 4, 8, …; may be repeated.
        dtype: of weights and computation: float32, bfloat16 or float16.
        context: positions cached, prompt and answer together.
        rtt: round trip to the server in milliseconds.
        bandwidth: of the link in Mbit/s.
        uplink: client to server in Mbit/s, where it differs from --bandwidth.
        client_memory: GB the client can spare for weights and cache (Python and torch take some 0.4 GB more); the
            recommendation then keeps to it.
        client_gbps: memory bandwidth of the client in GB/s (35: a laptop with two channels of DDR4).
        server_gbps: memory bandwidth of the server in GB/s (1000: one data-centre GPU).
        client_ms: measured client time per token in milliseconds, in place of the estimate.
        server_ms: measured server time per token in milliseconds, in place of the estimate.
        json: print one JSON object instead of tables.
    """
    import msgspec

    from cutlayer.models.conditions import Conditions
    from cutlayer.models.parameters import count_parameters
    from cutlayer.models.plan import make_plan
    from cutlayer.types import check_dtype

    conditions = Conditions(
        dtype=check_dtype(dtype),
        context=context,
        rtt_ms=rtt,
        downlink_mbps=bandwidth,
        uplink_mbps=bandwidth if uplink is None else uplink,
        client_gbps=client_gbps,
        server_gbps=server_gbps,
        client_ms=client_ms,
        server_ms=server_ms,
        client_memory_gb=client_memory,
    )
    made = make_plan(model, count_parameters(_config(model)), conditions, cut)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n")
    else:
        _show(made)
    return 0


def _config(model: str) -> PreTrainedConfig:
    """The checked configuration of a model's name or of a configuration file."""
    from cutlayer.models.family import read_config, read_config_file

    path = Path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        return read_config_file(path)
    from cutlayer.models.locate import locate_config

    return read_config(locate_config(model))


def _show(plan: Plan) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(_composition(plan))
    console.print(_memory("Client: weights in GB", plan, "client"))
    console.print(_memory("Server: weights in GB", plan, "server"))
    console.print(_speed(plan))
    console.print("Bytes per token, up / down")
    for codec, size in plan.wire.items():
        console.print(f"  {codec}  {size.up:,} / {size.down:,}")
    console.print(_assumptions(plan))
    for cut in plan.cuts:
        if cut.warning:
            console.print(f"{cut.cut}: {cut.warning}.")
    for note in plan.notes:
        console.print(note)
    console.print(f"\nRecommended: {f'--cut {plan.recommended}' if plan.recommended else 'no cut'} ({plan.reason}).")


def _composition(plan: Plan) -> str:
    counts = plan.parameters
    head = "the embedding again (tied)" if counts.tied else _millions(counts.output_head)
    least, most = _millions(min(counts.layers)), _millions(max(counts.layers))
    return (
        f"{plan.model}: {_millions(counts.total)} parameters; embedding {_millions(counts.embedding)}, "
        f"{len(counts.layers)} layers of {least if least == most else f'{least} to {most}'}, "
        f"final norm {_millions(counts.final_norm)}, output head {head}\n"
    )


def _assumptions(plan: Plan) -> str:
    assumed = plan.conditions
    sides = ", ".join(
        f"{name} at {gbps:g} GB/s" if given_ms is None else f"{name} {given_ms:g} ms as given"
        for name, given_ms, gbps in (
            ("client", assumed.client_ms, assumed.client_gbps),
            ("server", assumed.server_ms, assumed.server_gbps),
        )
    )
    return (
        f"\ntok/s: one token per round trip, warm connection, {plan.codec} on the wire, {assumed.rtt_ms:g} ms RTT, "
        f"{assumed.uplink_mbps:g} Mbit/s up, {assumed.downlink_mbps:g} down, {sides}."
    )


def _memory(title: str, plan: Plan, which: str) -> Table:
    table = _table(
        title, "cut", "k", "m", "float32", "bf16/fp16", "int8", "int4" + (" + embedding" * (which == "client"))
    )
    for cut in plan.cuts:
        weights = getattr(cut, which).weights
        int4 = _gb(weights.int4) + (f" + {_gb(weights.int4_embedding)}" if which == "client" else "")
        sizes = (_gb(weights.float32), _gb(weights.bfloat16), _gb(weights.int8), int4)
        table.add_row(cut.cut, str(cut.head_layers), str(cut.tail_layers), *sizes)
    return table


def _speed(plan: Plan) -> Table:
    bound = plan.conditions.client_memory_gb
    table = _table(
        f"Cache and speed in {plan.conditions.dtype}, {plan.conditions.context} positions",
        "cut",
        "KV MB/1k\nclient",
        "KV MB/1k\nserver",
        "client GB\nwith KV",
        "ms/token\nclient",
        "ms/token\nserver",
        "tok/s",
        *([] if bound is None else [f"fits\n{bound:g} GB"]),
    )
    for cut in plan.cuts:
        table.add_row(
            cut.cut,
            *(f"{side.kv_bytes / 1e6:.2f}" for side in (cut.client, cut.server)),
            _gb(cut.client_bytes),
            *(f"{side.token_ms:.2f}" for side in (cut.client, cut.server)),
            f"{cut.tokens_per_s[plan.codec]:.2f}",
            *([] if cut.fits is None else ["yes" if cut.fits else "no"]),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "cut" else "right", no_wrap=True)
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.3f} M"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"
