"""What `--pad-drafts` costs, and what it hides from somebody who sees the lengths of messages.

Every prompt is answered twice at a temperature, with other seeds, and once greedily (again would be the same), each time in a
session of its own: without guesses, with the default's, and with as many rows in every step. An onlooker who has seen the
first answers names the prompts of the second ones, see ``padding_onlooker.py``. In this process, float32; the times that
decide how many guesses pay are assumed, those of a link of 80 ms, so that nothing depends on how fast this machine is today.

Prints and writes the record ``padding``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final, NamedTuple

import numpy as np
from cyclopts import App, Parameter
from rich.progress import track

from cutlayer.audit.tap import Tap
from cutlayer.client.connect import Client, Options
from cutlayer.client.decoder import StepTiming
from cutlayer.client.remote import Patience
from cutlayer.client.sampling import Sampling
from cutlayer.client.speculation.drafting import Drafting
from cutlayer.client.speculation.speculator import Verified, build_speculator
from cutlayer.client.speculation.table import find_table
from cutlayer.client.trusted import Trusted
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, exact, new_record, proportion
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.wire import frames
from padding_onlooker import LOOKS, Trace, named, type_named
from report import PROMPTS_OF_WAN, command, finish, ratio
from wan_answers import Prompt, read_prompts

app = App(help=__doc__)

RTT_S: Final = 0.080
STEP_S: Final = 0.090
"""Head, body and tail, whatever the number of rows; and of each row. As in the record `wan`."""
ROW_S: Final = 0.002


class Assumed(Drafting):
    """As if every step took what it takes over a link of 80 ms, and guessing took nothing.

    Args:
        trusted: what this side holds of the model.
        pad_to: see `Drafting`.
    """

    def __init__(self, trusted: Trusted, pad_to: int) -> None:
        super().__init__(build_speculator("auto", trusted), len(trusted.parts.head.embedding()), pad_to)
        self.kept: list[int] = []
        """Rows that were right, by step."""

    def observe(self, seen: Verified) -> None:
        """See `Drafting.observe`."""
        super().observe(seen)
        self.kept.append(len(seen.kept))

    def took(self, timing: StepTiming) -> None:
        """See `Drafting.took`."""
        self.seconds = 0.0
        computing = _computing_s(timing.rows)
        super().took(timing._replace(total=RTT_S + computing, client=0.0, server=computing))


class Asked(NamedTuple):
    """One answer."""

    trace: Trace
    ids: list[int]
    trips: int
    rows: int
    """Sent after the prompt."""
    bytes: int
    """Of all messages after the prompt, both ways."""
    assumed_s: float
    """Of the steps after the prompt; bytes not counted."""


@app.default
def padding(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    per_type: int = 4,
    tokens: int = 48,
    temperature: float = 0.7,
    pad_to: int = 24,
    sessions: int = 10,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    per_type
        Prompts of every text type.
    tokens
        Of an answer, at most.
    temperature
        Of the answers that are sampled.
    pad_to
        Rows of a padded step.
    sessions
        At once.
    write
        Whether to write the record.
    """
    prompts = read_prompts(per_type)
    ways: dict[str, int | None] = {"off": None, "unpadded": 0, "padded": pad_to}
    runs = {
        "first": Sampling(temperature=temperature, seed=1),
        "second": Sampling(temperature=temperature, seed=2),
        "greedy": Sampling(),
    }
    given: dict[str, dict[str, list[Asked]]] = {}
    with LocalServer(build_service(locate(model), model, cut, "float32")) as server:
        with Client(server.connect, Options(model=model, speculate="off")) as client:
            trusted = client.trusted
            table = find_table(trusted.info.fingerprint)
        with ThreadPoolExecutor(sessions) as pool:
            for way, rows in ways.items():
                given[way] = {}
                for run, sampling in runs.items():
                    asked = pool.map(lambda prompt: _ask(server, trusted, prompt, rows, sampling, tokens), prompts)  # noqa: B023
                    given[way][run] = list(track(asked, f"{way}, {run}", len(prompts)))
    figures: dict[str, Figure] = {}
    for way, answers in given.items():
        figures |= {f"{way}_{key}": figure for key, figure in _cost(answers["first"], answers["second"]).items()}
        same = [a.ids == b.ids for run in runs for a, b in zip(answers[run], given["off"][run], strict=True)]
        figures[f"{way}_identical"] = proportion(sum(same), len(same))
        figures |= {f"{way}_{key}": figure for key, figure in _shares(answers).items()}
    figures["padded_over_unpadded_bytes_per_token"] = exact(
        figures["padded_bytes_per_token"].value / figures["unpadded_bytes_per_token"].value, "ratio", len(prompts)
    )
    figures["chance"] = exact(1 / len(prompts), "fraction", len(prompts))
    figures["type_chance"] = exact((per_type - 1) / (len(prompts) - 1), "fraction", len(prompts))
    record = new_record(
        "padding",
        command("padding"),
        {
            "model": model,
            "cut": cut,
            "dtype": "float32",
            "text": f"{PROMPTS_OF_WAN}, the first {per_type} of every type",
            "tokens_per_prompt": tokens,
            "temperature": temperature,
            "pad_to": pad_to,
            "speculator": "auto",
            "table": table.name if table else None,
            "assumed_s": {"round_trip": RTT_S, "step": STEP_S, "row": ROW_S},
            "intervals": "shares: Wilson, over prompts, each the mean of both directions; ratios: bootstrap over answers",
        },
        figures,
        {
            f"{way}_{run}": [
                [*asked.trace, asked.trips, asked.rows, asked.bytes, asked.assumed_s] for asked in asked_all
            ]
            for way, answers in given.items()
            for run, asked_all in answers.items()
        },
    )
    finish(record, write=write)


def _ask(
    server: LocalServer, trusted: Trusted, prompt: Prompt, rows: int | None, sampling: Sampling, tokens: int
) -> Asked:
    """One answer in a session of its own: no guesses, or padded to so many rows, 0 as many as pay."""
    tap = Tap(server.connect)
    drafting = None if rows is None else Assumed(trusted, rows)
    # Nothing is lost on the way, but a busy machine may take its time.
    with Client(tap, Options(speculate="off", patience=Patience(step_s=3600)), trusted) as client:
        client._drafting = drafting
        ids = client.encode(prompt.text)
        generation = client.generate(ids, max_tokens=tokens, sampling=sampling)
        result = generation.result()
    crossed: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    """By whether it is the client's, and whether of the prompt."""
    for message in tap.frames:
        header = frames.decode(message.data).header
        if isinstance(header, frames.Step | frames.Result):
            crossed[message.direction == "sent", header.base < len(ids)].append(len(message.data))
    lengths = crossed[True, False]
    kept = drafting.kept if drafting else [1] * result.steps
    return Asked(
        Trace(prompt.id, prompt.type, sum(crossed[True, True]), lengths, kept),
        result.token_ids,
        result.steps,
        sum(step.sent for step in generation.timings[1:]),
        sum(lengths) + sum(crossed[False, False]),
        sum(RTT_S + _computing_s(step.rows) for step in generation.timings[1:]),
    )


def _computing_s(rows: int) -> float:
    return STEP_S + ROW_S * rows


def _cost(*runs: Sequence[Asked]) -> dict[str, Figure]:
    answers = [asked for run in runs for asked in run]
    brought, trips = [len(asked.ids) - 1 for asked in answers], [asked.trips for asked in answers]
    return {
        "tokens_per_trip": ratio(brought, trips, "tokens/trip"),
        "bytes_per_token": ratio([asked.bytes for asked in answers], brought, "bytes/token"),
        "rows_per_trip": ratio([asked.rows for asked in answers], trips, "rows/trip"),
        "assumed_tokens_per_s": ratio(brought, [asked.assumed_s for asked in answers], "tokens/s"),
    }


def _shares(answers: Mapping[str, Sequence[Asked]]) -> dict[str, Figure]:
    """Of prompts named by each look: sampled answers by those with another seed, greedy ones by themselves."""
    first, second, greedy = ([asked.trace for asked in answers[run]] for run in ("first", "second", "greedy"))
    figures: dict[str, Figure] = {}
    for key, look in LOOKS.items():
        figures[f"named_by_{key}"] = _both(named(look, first, second), named(look, second, first))
        figures[f"type_named_by_{key}"] = _both(type_named(look, first, second), type_named(look, second, first))
        again = named(look, greedy, greedy)
        figures[f"greedy_named_by_{key}"] = proportion(sum(again), len(again))
    return figures


def _both(one: Sequence[float], other: Sequence[float]) -> Figure:
    """Share of prompts, seen in one run and named in the other."""
    return proportion(float(np.mean([one, other], axis=0).sum()), len(one))


if __name__ == "__main__":
    app()
