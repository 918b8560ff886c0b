"""What splitting costs when the network is free: tokens/s over loopback TLS against unsplit transformers.

Both run on this machine, in this run, prompt by prompt in turn, so that whatever else the machine does hits both.
Prints and writes the record ``overhead``.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import torch
from cyclopts import App, Parameter
from rich.progress import track
from transformers import AutoModelForCausalLM

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, connect
from cutlayer.models.locate import locate
from cutlayer.records.record import exact, median, new_record, quantile
from report import PROMPTS, finish, prompt_texts

app = App(help=__doc__)


@app.default
def overhead(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    dtype: str = "float32",
    prompts: int = 20,
    tokens: int = 64,
    warm_up: int = 2,
    write: bool = True,
) -> None:
    """Measure and record."""
    directory = locate(model)
    unsplit = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    ratios, split_rates, unsplit_rates, protocol_ms = [], [], [], []
    step_bytes: list[float] = []
    with (
        ServerProcess(model, cut, (f"--dtype={dtype}",)) as server,
        connect(server.url, keys=server.client_keys, options=Options(model=model, speculate="off")) as client,
    ):
        security = client.security()
        row = client.codec.row_bytes(client.info.hidden_size)
        texts = prompt_texts(prompts)
        for number, text in enumerate(track([*texts[:warm_up], *texts], description="overhead")):
            ids = client.encode(text)
            inputs = torch.tensor([ids])
            started = time.perf_counter()
            with torch.inference_mode():
                expected = unsplit.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )[0, len(ids) :].tolist()
            unsplit_s = time.perf_counter() - started
            started = time.perf_counter()
            generation = client.generate(ids, max_tokens=tokens, ignore_eos=True)
            result = generation.result()
            split_s = time.perf_counter() - started
            if number < warm_up:
                continue
            if len(expected) != len(result.token_ids):
                raise RuntimeError("both sides must produce the same number of tokens to compare rates")
            split_rates.append(tokens / split_s)
            unsplit_rates.append(tokens / unsplit_s)
            ratios.append(unsplit_s / split_s)
            protocol_ms += [(step.total - step.client - step.server) * 1e3 for step in generation.timings[1:]]
        warm_ms = [_round_trip_ms(client) for _ in range(300)][100:]
        before = client.generate(ids, max_tokens=2, ignore_eos=True).result()
        after = client.generate(ids, max_tokens=tokens, ignore_eos=True).result()
        steps = after.steps - before.steps
        step_bytes.append(
            (after.bytes.sent + after.bytes.received - before.bytes.sent - before.bytes.received) / steps - 2 * row
        )
    record = new_record(
        "overhead",
        "cutlayer bench overhead",
        {
            "model": model,
            "cut": cut,
            "dtype": dtype,
            "text": PROMPTS,
            "prompts": prompts,
            "tokens_per_prompt": tokens,
            "warm_up_prompts": warm_up,
            "transport": f"{security.protocol} {security.cipher}, loopback, WebSocket",
            "threads": torch.get_num_threads(),
            "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
            "unsplit": "transformers generate, greedy, same dtype, same process as the client",
        },
        {
            "split_over_unsplit_tokens_per_s": median(ratios, "ratio"),
            "split_tokens_per_s": median(split_rates, "tokens/s"),
            "unsplit_tokens_per_s": median(unsplit_rates, "tokens/s"),
            "protocol_ms_p50": quantile(protocol_ms, 0.5, "ms"),
            "protocol_ms_p99": quantile(protocol_ms, 0.99, "ms"),
            "warm_round_trip_ms_p50": median(warm_ms, "ms"),
            "step_bytes_beyond_hidden_states": exact(step_bytes[0], "bytes"),
        },
        {
            "ratio": ratios,
            "split_tokens_per_s": split_rates,
            "unsplit_tokens_per_s": unsplit_rates,
            "protocol_ms": protocol_ms,
        },
    )
    finish(record, write=write)


def _round_trip_ms(client: Client) -> float:
    """An INFO frame and its 10 kB answer: the wire with no model in between, so with warm caches."""
    started = time.perf_counter()
    client._remote.info()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    app()
