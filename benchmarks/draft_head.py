"""Whether a draft head adds to what needs no training: tokens per round trip of its chains and trees, of `auto`, and of both.

Of the head that ships, or one made by ``cutlayer train-draft``; how it was made is copied from the file to the record. Greedy, in
this process, with the prompts of ``wan_prompts.jsonl``; every speculator gives the same answers, which is checked. Sizes are
fixed, so that nothing depends on how fast this machine is today. Beside it stands how often one guess would be right at a
temperature of 0.7, if it were drawn from the head's distribution, or named as its likeliest.

Prints and writes the record ``draft_head``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from cyclopts import App, Parameter
from rich.progress import track

from cutlayer.client.connect import Client, Options
from cutlayer.client.speculation.drafting import Drafting
from cutlayer.client.speculation.head.examples import Example
from cutlayer.client.speculation.head.file import find_head, load_head, read_card
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.client.speculation.head.recording import Recorder
from cutlayer.client.speculation.head.unroll import unroll
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.errors import InputError
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, exact, new_record
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from report import PROMPTS_OF_WAN, command, finish, ratio
from wan_answers import Prompt, read_prompts

app = App(help=__doc__)

TEMPERATURE = 0.7


class Way(NamedTuple):
    """How to guess."""

    spec: str
    nodes: int


class Run(NamedTuple):
    """What came of it, per prompt."""

    answers: list[list[int]]
    trips: list[int]
    examples: list[Example]
    draft_s: float
    """In all."""


@app.default
def draft_head(
    head: Path | None = None,
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    per_type: int = 2,
    tokens: int = 64,
    nodes: int = 24,
    chain: int = 6,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    head
        File made by ``cutlayer train-draft``; default: the one that ships.
    model
        Name or directory.
    cut
        A:B, the server's layers.
    per_type
        Prompts of every text type.
    tokens
        Of an answer.
    nodes
        Guesses of a tree.
    chain
        Guesses of a chain.
    write
        Whether to write the record.
    """
    prompts = read_prompts(per_type)
    with (
        LocalServer(build_service(locate(model), model, cut, "float32")) as server,
        Client(server.connect, Options(model=model, speculate="off")) as client,
    ):
        head = head or find_head(client.trusted)
        if head is None:
            raise InputError(f"no draft head ships for {model} cut at {cut}; give a file")
        path = f"head:path={head}"
        ways = {
            "head_chain": Way(f"{path},breadth=1,depth={chain}", chain),
            "head_tree": Way(path, nodes),
            "auto": Way("auto:head=none", nodes),
            "auto_and_head": Way(f"auto:head={head}", nodes),
        }
        runs = {name: _run(server, model, way, prompts, tokens) for name, way in ways.items()}
        known = len(client.parts.head.embedding())
        right = _one_guess(load_head(head, client.trusted), runs["head_chain"].examples, known)
    for name, run in runs.items():
        if run.answers != runs["auto"].answers:
            raise RuntimeError(f"{name} changed an answer")
    brought = [len(answer) - 1 for answer in runs["auto"].answers]  # the first token comes with the prefill
    figures: dict[str, Figure] = {}
    for name, run in runs.items():
        figures[f"{name}_tokens_per_trip"] = ratio(brought, run.trips, "tokens/trip")
        figures[f"{name}_draft_ms_per_trip"] = exact(1e3 * run.draft_s / sum(run.trips), "ms", sum(run.trips))
        for kind in dict.fromkeys(prompt.type for prompt in prompts):
            rows = [i for i, prompt in enumerate(prompts) if prompt.type == kind]
            figures[f"{name}_{kind}_tokens_per_trip"] = exact(
                sum(brought[i] for i in rows) / sum(run.trips[i] for i in rows), "tokens/trip", len(rows)
            )
    for key, values in right.items():
        figures[f"right_at_temperature_{key}"] = exact(float(np.mean(values)), "fraction", len(values))
    figures["auto_and_head_over_auto"] = ratio(runs["auto"].trips, runs["auto_and_head"].trips, "ratio")
    figures["file_bytes"] = exact(head.stat().st_size, "bytes")
    record = new_record(
        "draft_head",
        command("draft_head"),
        {
            "model": model,
            "cut": cut,
            "dtype": "float32",
            "made": read_card(head).made,
            "text": f"{PROMPTS_OF_WAN}, the first {per_type} of every type",
            "tokens_per_prompt": tokens,
            "ways": {
                name: {"spec": way.spec.replace(str(head), head.name), "nodes": way.nodes} for name, way in ways.items()
            },
            "temperature": TEMPERATURE,
            "tokens_per_trip": "tokens after the first over round trips after the prefill; interval: bootstrap over prompts",
        },
        figures,
        {"tokens": brought, **{f"{name}_trips": run.trips for name, run in runs.items()}, **right},
    )
    finish(record, write=write)


def _run(server: LocalServer, model: str, way: Way, prompts: Sequence[Prompt], tokens: int) -> Run:
    """Answer all prompts in one session."""
    run = Run([], [], [], 0.0)
    with Client(server.connect, Options(model=model, speculate="off")) as client:
        recorder = Recorder(build_speculator(way.spec, client.trusted), way.nodes)
        client._drafting = Drafting(recorder, len(client.parts.head.embedding()))
        for prompt in track(prompts, description=way.spec.partition(":")[0]):
            client.forget()
            ids = client.encode(prompt.text)
            result = client.generate(ids, max_tokens=tokens).result()
            run.answers.append(result.token_ids)
            run.trips.append(result.steps)
            run.examples.append(recorder.example(len(ids)))
        return run._replace(draft_s=client._drafting.seconds)


@torch.inference_mode()
def _one_guess(head: DraftHead, examples: Sequence[Example], vocabulary: int) -> dict[str, list[float]]:
    """Chance that a first guess is right at the temperature, mean of each answer: the likeliest, one of the four likeliest, one
    drawn. Of the model's distribution the 32 likeliest tokens count."""
    found: list[tuple[float, float, float]] = []
    for example in examples:
        start = int(example.answer)
        logits = next(unroll(head, example.ids[None].long(), example.returned[None].float(), 1))[0, start:]  # [T, R]
        nothing = torch.zeros(len(logits), vocabulary)  # [T, V]
        likely, chances = example.likely[start:].long(), example.chances[start:].float() ** (1 / TEMPERATURE)  # [T, K]
        model = nothing.scatter(1, likely, chances / chances.sum(-1, keepdim=True))  # [T, V]
        guess = nothing.index_copy(1, head.vocabulary, (logits / TEMPERATURE).softmax(-1))  # [T, V]
        best = model.gather(1, guess.topk(4).indices)  # [T, 4]
        shared = torch.minimum(model, guess).sum(-1)  # [T]
        found.append((float(best[:, 0].mean()), float(best.sum(-1).mean()), float(shared.mean())))
    columns = (list(column) for column in zip(*found, strict=True))
    return dict(zip(("named", "one_of_four_named", "drawn"), columns, strict=True))


if __name__ == "__main__":
    app()
