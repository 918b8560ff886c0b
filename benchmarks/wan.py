"""Speculation over an emulated wide-area link: tokens per round trip, tokens per second, time to the first token.

Three parts, each of which keeps what the record has of the others: ``acceptance`` (all prompts with every speculator, several
sessions at once: are the tokens those of sequential decoding, and how many does a round trip bring?), ``speed`` (one session,
the clock on the wall, over a grid of links), ``first`` (time to the first token: cold, warm, after a pause).
Prints and writes the record ``wan`` and draws docs/figures/wan.svg from it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import App, Parameter

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, dialler
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape
from cutlayer.records.record import Figure, exact, hardware, median, new_record, proportion, read_record, write_record
from cutlayer.types import check_dtype
from cutlayer.wire.codecs import CODECS, LOSSLESS_FOR
from report import RECORDS, ROOT, command, finish, ratio
from wan_answers import TYPES, Answer, Prompt, Trip, TripModel, ask, ask_all, by_type, read_prompts, tokens_per_s
from wan_plot import draw

app = App(help=__doc__)
_PROMPTS = "40 prompts of our own, 8 of each type of text (benchmarks/wan_prompts.jsonl)"
_HEADLINE = Shape(rtt_ms=80, mbit_s=100)
_OTHERS = [Shape(rtt_ms=rtt, mbit_s=rate) for rate in (100, 20) for rtt in (80, 20, 150) if (rtt, rate) != (80, 100)]
_CUNNINGHAM = ("cunningham:n=3", "cunningham:n=5", "cunningham:n=7")
_FIXED = (*_CUNNINGHAM, "lookahead", "recycling:tree=static")
"""They send whatever they guess. The others measure what rows cost, and are not to be misled by sessions beside them."""
_ADAPTIVE = ("lookup", "auto:table=none,head=none", "auto:head=none", "recycling")
_PAUSES_S = (0.0, 2.0, 10.0)


class Study:
    """Figures and samples as they come, on top of what the record has."""

    def __init__(self, model: str, write: bool, config: dict[str, Any]) -> None:
        self.model = model
        self._write = write
        self._config = config
        self.figures: dict[str, Figure] = {}
        self.samples: dict[str, list[Any]] = {}
        path = RECORDS / "wan.json"
        if path.is_file():
            held = read_record(path)
            self.figures, self.samples = dict(held.figures), dict(held.samples)
            self._config = dict(held.config) | config
            # What an earlier machine measured stays its own
            earlier = held.hardware["processor"]
            self._config.setdefault("processors", dict.fromkeys(self._config.get("commands", {}), earlier))
            for how in self._config.get("acceptance", {}).values():
                how.setdefault("processor", earlier)

    def save(self, *parts: str, **more: Any) -> None:
        """Write what there is; `parts` were measured by this command."""
        self._config |= more
        for name, value in (("commands", command("wan")), ("processors", hardware()["processor"])):
            self._config[name] = self._config.get(name, {}) | dict.fromkeys(parts, value)
        self.record = new_record("wan", command("wan"), self._config, self.figures, self.samples)
        if self._write:
            write_record(self.record, RECORDS)

    def save_acceptance(self, name: str, sessions: int) -> None:
        """Write what there is; `name` was measured by this command, with so many sessions at once."""
        how = {
            "sessions": sessions,
            "command": command("wan"),
            "load_average": os.getloadavg(),
            "processor": hardware()["processor"],
        }
        self.save(acceptance=self._config.get("acceptance", {}) | {name: how})

    @contextmanager
    def link(self, shape: Shape, dtype: str) -> Iterator[ServerProcess]:
        """A server on the far side of a link."""
        options = (f"--dtype={dtype}",)
        with (
            Link(shape) as link,
            ServerProcess(self.model, options=options, host=link.far_host, prefix=link.prefix) as server,
        ):
            port = int(server.url.rpartition(":")[2])
            server.url = f"wss://{link.address(port)}"
            self._config["link"] = str(link.kind)
            yield server

    def client(self, server: ServerProcess, speculate: str) -> Client:
        """A session with a speculator of its own."""
        return Client(
            dialler(server.url, keys=server.client_keys, keep_warm_s=60), Options(model=self.model, speculate=speculate)
        )

    def keep(self, name: str, answers: Sequence[Answer]) -> None:
        """Raw values of answers."""
        self.samples[name] = [
            [a.prompt, a.tokens, a.digest, round(a.seconds, 4), round(a.draft, 4), a.sent, a.received, len(a.trips)]
            for a in answers
        ]

    def trips(self, shape: Shape, name: str = "") -> list[Trip]:
        """Round trips over a link, of one speculator or of all."""
        begin, end = f"{_label(shape)}_", f"{name}_trips"
        return [
            Trip(*raw)
            for key, kept in self.samples.items()
            if key.startswith(begin) and key.endswith(end)
            for raw in kept
        ]

    def digests(self, name: str, count: int) -> list[str] | None:
        """Of the answers that the record has under a name, if they are so many."""
        held = self.samples.get(name, ())
        return [digest for _, _, digest, *_ in held] if len(held) == count else None

    def add_pooled(self, name: str) -> None:
        """All tokens over all trips of the answers kept under a name: answers that repeat themselves weigh little in it."""
        answers = self.samples[f"acceptance_{name}"]
        tokens, trips = [answer[1] - 1 for answer in answers], [answer[7] for answer in answers]
        self.figures[f"{name}_pooled_tokens_per_trip"] = ratio(tokens, trips, "tokens")

    def add_acceptance(self, name: str, answers: Sequence[Answer], reference: Sequence[str]) -> None:
        """Tokens per round trip, over all and by type; and whether the tokens are those of sequential decoding."""
        types = by_type(answers, lambda answer: answer.per_trip)
        for kind, values in types.items():
            self.figures[f"{name}_{kind}_tokens_per_trip"] = _mean(values, "tokens")
        self.figures[f"{name}_tokens_per_trip"] = _mean(
            [value for values in types.values() for value in values], "tokens"
        )
        self.figures[f"{name}_bytes_per_token"] = _mean([(a.sent + a.received) / a.tokens for a in answers], "bytes")
        same = sum(answer.digest == digest for answer, digest in zip(answers, reference, strict=True))
        self.figures[f"{name}_identical"] = proportion(same, len(answers))


@app.default
def wan(
    *,
    model: str = "smollm2-135m",
    parts: tuple[str, ...] = ("acceptance", "speed", "first"),
    each: int = 8,
    tokens: int = 128,
    timed_each: int = 2,
    timed_tokens: int = 128,
    grid_each: int = 1,
    grid_tokens: int = 64,
    sessions: int = 8,
    adaptive_sessions: int = 2,
    repeats: int = 5,
    fixed: tuple[str, ...] = _FIXED,
    adaptive: tuple[str, ...] = (*_ADAPTIVE, "auto"),
    resume: bool = False,
    again: tuple[str, ...] = (),
    dtype: str = "bfloat16",
    threads: int = 1,
    grid: Annotated[bool, Parameter(negative="--headline-only")] = True,
    write: bool = True,
    redraw: bool = False,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    parts
        Which of acceptance, speed, first.
    each
        Prompts of each type in ``acceptance``.
    tokens
        Of each answer there.
    timed_each
        Prompts of each type in ``speed``, over the headline's link.
    timed_tokens
        Of each answer there.
    grid_each
        Prompts of each type over each of the other links.
    grid_tokens
        Of each answer there.
    sessions
        At once, in ``acceptance``, of speculators that send whatever they guess.
    adaptive_sessions
        At once, of those that measure what rows cost.
    repeats
        Of each time to the first token.
    fixed
        Speculators that send whatever they guess, besides ``off``.
    adaptive
        Speculators that send what pays; ``auto`` is measured at a temperature of 0.7, too.
    resume
        Keep what the record has of ``acceptance`` with as many prompts.
    again
        Names in the record (``auto``, ``auto_t07``) to measure once more all the same.
    dtype
        In ``speed`` and ``first``; ``acceptance`` is in float32, where the same tokens can be asked for.
    threads
        Of torch on either side.
    grid
        All links, or the one of 80 ms and 100 Mbit/s alone.
    write
        Whether to write the record.
    redraw
        Only derive what is derived from the record's samples, and draw.
    """
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the servers started here
    chart = ROOT / "docs" / "figures" / "wan.svg"
    study = Study(
        model,
        write,
        {"model": model, "cut": "2:-2", "prompts": _PROMPTS, "threads": threads, "headline": str(_HEADLINE)},
    )
    if redraw:
        parts = ()
        width = read_config(locate(model)).hidden_size
        _add_heldout(study, CODECS.get(LOSSLESS_FOR[check_dtype(dtype)]).row_bytes(width))
        for shape in filter(study.trips, (_HEADLINE, *_OTHERS)):
            _add_ratios(study, _label(shape), shape == _HEADLINE)
        study.save()
    if "acceptance" in parts:
        study.save(tokens=tokens, prompts_each=each, dtype="float32")
        ways = [
            _Way("off", 0.0, sessions), *(_Way(spec, 0.0, sessions) for spec in fixed), _Way("off", 0.7, sessions),
            *(_Way(spec, 0.0, adaptive_sessions) for spec in adaptive),
            *(_Way(spec, 0.7, adaptive_sessions) for spec in adaptive if spec == "auto"),
        ]  # fmt: skip
        _acceptance(study, read_prompts(each), tokens, ways, again if resume else None)
    if "speed" in parts:
        loads = [_Load(_HEADLINE, read_prompts(timed_each), timed_tokens)]
        if grid:
            loads += [_Load(shape, read_prompts(grid_each), grid_tokens) for shape in _OTHERS]
        _speed(study, loads, dtype)
        study.save(
            "speed", timed_tokens=timed_tokens, timed_prompts_each=timed_each, grid_tokens=grid_tokens,
            grid_prompts_each=grid_each, timed_dtype=dtype,
        )  # fmt: skip
    if "first" in parts:
        _first(study, repeats, dtype)
        study.save("first", repeats=repeats, pauses_s=_PAUSES_S, timed_dtype=dtype)
    finish(study.record, write=write)
    if write and grid:
        draw(study.record, chart)


class _Load(NamedTuple):
    """What is answered over a link, on the clock."""

    shape: Shape
    prompts: Sequence[Prompt]
    tokens: int


class _Way(NamedTuple):
    spec: str
    temperature: float
    sessions: int


def _acceptance(
    study: Study, prompts: Sequence[Prompt], tokens: int, ways: Sequence[_Way], again: Sequence[str] | None
) -> None:
    """Everything over the headline's link, whose round trip the default's tree size depends on; of what the record has only
    what is named `again`, or all if that is None.
    """
    with study.link(_HEADLINE, "float32") as server:  # identity needs it
        references: dict[float, list[str]] = {}
        for spec, temperature, sessions in ways:
            name = _name(spec, temperature)
            held = study.digests(f"acceptance_{name}", len(prompts))
            if again is not None and name not in again and held is not None:
                references.setdefault(temperature, held)
                study.add_pooled(name)
                continue
            with ExitStack() as stack:
                first = stack.enter_context(study.client(server, spec))
                clients = [first, *(stack.enter_context(first.another()) for _ in range(sessions - 1))]
                answers = ask_all(clients, prompts, tokens, temperature, name)
            references.setdefault(temperature, [answer.digest for answer in answers])
            study.add_acceptance(name, answers, references[temperature])
            study.keep(f"acceptance_{name}", answers)
            study.add_pooled(name)
            sys.stderr.write(f"{name}: {study.figures[f'{name}_tokens_per_trip'].value:.2f} tokens per round trip\n")
            if spec == "auto" and not temperature:
                study.figures["tokens_per_round_trip_mean"] = study.figures["auto_tokens_per_trip"]
            study.save_acceptance(name, sessions)


def _speed(study: Study, loads: Sequence[_Load], dtype: str) -> None:
    """The headline's link first: all others are predicted from it."""
    for shape, prompts, tokens in loads:
        label = _label(shape)
        specs = ("off", "auto", *(_CUNNINGHAM if shape == _HEADLINE else ()))
        with study.link(shape, dtype) as server, ExitStack() as stack:
            clients = {spec: stack.enter_context(study.client(server, spec)) for spec in specs}
            answers: dict[str, list[Answer]] = {spec: [] for spec in specs}
            for prompt in prompts:  # in turn, so that a slow moment of the machine hits all of them
                for spec, client in clients.items():
                    answers[spec].append(ask(client, prompt, tokens, 0.0))
                    sys.stderr.write(f"{label} {spec} {prompt.id}: {tokens_per_s(answers[spec][-1:]):.1f} tokens/s\n")
            row_bytes = clients["off"].codec.row_bytes(clients["off"].info.hidden_size)
        for spec, given in answers.items():
            name = _name(spec, 0.0)
            study.keep(f"{label}_{name}", given)
            study.samples[f"{label}_{name}_trips"] = [
                [round(value, 5) for value in trip] for answer in given for trip in answer.trips
            ]
            study.figures[f"{label}_{name}_tokens_per_s"] = _ratio_of_sums(given)
        _add_ratios(study, label, shape == _HEADLINE)
        rtt_s, bytes_per_s = shape.rtt_ms / 1e3, shape.bytes_per_s
        study.figures[f"{label}_fraction_of_model"] = _fraction(answers["auto"], rtt_s, bytes_per_s, row_bytes)
        study.save()
    _add_heldout(study, row_bytes)


def _label(shape: Shape) -> str:
    """Of figures over a link."""
    return f"rtt{shape.rtt_ms:.0f}_{shape.mbit_s:.0f}"


def _add_heldout(study: Study, row_bytes: int) -> None:
    """How well what was fitted to the headline's link predicts the others: all of a round trip, and what is left of it once the
    computing is taken as each trip took it, since a shared machine is not equally fast all the time.
    """
    model = TripModel.fit(study.trips(_HEADLINE), _HEADLINE.rtt_ms / 1e3, _HEADLINE.bytes_per_s, row_bytes)
    whole: dict[str, float] = {}
    link: dict[str, float] = {}
    for shape in _OTHERS:
        for name in ("off", "auto"):
            trips = study.trips(shape, name)
            if trips:
                took = sum(trip.total for trip in trips)
                at = shape.rtt_ms / 1e3, shape.bytes_per_s
                key = f"{_label(shape)}_{name}"
                whole[key] = abs(sum(model.seconds(trip.rows, *at) for trip in trips) / took - 1)
                link[key] = abs(sum(model.around_computing(trip, *at) for trip in trips) / took - 1)
    for name, errors in (("heldout_latency_error", whole), ("heldout_link_error", link)):
        if errors:
            study.samples[f"{name}s"] = [[key, round(error, 4)] for key, error in errors.items()]
            study.figures[name] = _mean(list(errors.values()), "relative")
            study.figures[f"{name}_worst"] = exact(max(errors.values()), "relative", len(errors))


def _add_ratios(study: Study, label: str, headline: bool) -> None:
    """Of the same prompts in the same run."""

    def seconds(spec: str) -> dict[str, float]:
        """Of each prompt, per token."""
        kept = study.samples[f"{label}_{_name(spec, 0.0)}"]
        return {prompt: seconds / (tokens - 1) for prompt, tokens, _, seconds, *_ in kept}

    default = seconds("auto")

    def speedup(over: str, kind: str = "") -> Figure:
        slower = seconds(over)
        return _mean([slower[prompt] / took for prompt, took in default.items() if prompt.startswith(kind)], "ratio")

    study.figures[f"{label}_speedup_over_sequential"] = speedup("off")
    kinds = {kind: speedup("off", kind) for kind in TYPES}
    for kind, figure in kinds.items():
        study.figures[f"{label}_{kind}_speedup_over_sequential"] = figure
    study.figures[f"{label}_slowest_type_over_sequential"] = min(kinds.values(), key=lambda figure: figure.value)
    if headline:
        study.figures["speedup_over_sequential_80ms"] = study.figures[f"{label}_speedup_over_sequential"]
        together = {spec: study.figures[f"{label}_{_name(spec, 0.0)}_tokens_per_s"].value for spec in _CUNNINGHAM}
        best = max(together, key=together.__getitem__)
        study.figures["speedup_over_cunningham_80ms"] = speedup(best)
        study.figures["speedup_over_cunningham_80ms_together"] = ratio(
            list(seconds(best).values()), list(default.values()), "ratio"
        )
        for spec in _CUNNINGHAM:
            study.figures[f"speedup_over_{_name(spec, 0.0)}_80ms"] = speedup(spec)
        study.samples["best_cunningham"] = [best]


def _first(study: Study, repeats: int, dtype: str) -> None:
    """A question of some forty tokens after another one was answered, as in a conversation."""
    questions = [prompt.text for prompt in read_prompts(8) if prompt.type == "chat"]
    with study.link(_HEADLINE, dtype) as server:
        times: dict[str, list[float]] = {}
        over: dict[str, list[float]] = {}
        for turn in range(repeats):
            with study.client(server, "auto") as client:
                for pause in (None, *_PAUSES_S):
                    if pause is not None:
                        time.sleep(pause)
                    name = "cold" if pause is None else f"after_{pause:.0f}_s"
                    client.forget()
                    generation = client.generate(questions[(turn + len(times)) % len(questions)], max_tokens=12)
                    generation.result()
                    step = generation.timings[0]
                    times.setdefault(name, []).append(step.total * 1e3)
                    ideal = _HEADLINE.rtt_ms / 1e3 + step.client + step.server
                    over.setdefault(name, []).append(step.total / ideal)
    for name, values in times.items():
        study.figures[f"first_token_ms_{name}"] = median(values, "ms")
        study.figures[f"first_token_over_ideal_{name}"] = median(over[name], "ratio")
        study.samples[f"first_token_{name}"] = [values, over[name]]


def _fraction(answers: Sequence[Answer], rtt_s: float, bytes_per_s: float, row_bytes: int) -> Figure:
    """Tokens per second as a share of what the synchronous model gives for the same round trips."""
    shares = []
    for answer in answers:
        predicted = answer.draft + sum(
            rtt_s + trip.client + trip.server + 2 * trip.rows * row_bytes / bytes_per_s for trip in answer.trips
        )
        shares.append(predicted / answer.seconds)
    return _mean(shares, "fraction")


def _ratio_of_sums(answers: Sequence[Answer]) -> Figure:
    figure = _mean([tokens_per_s([answer]) for answer in answers], "tokens/s")
    return Figure(tokens_per_s(answers), figure.low, figure.high, len(answers), "tokens/s")


def _mean(values: Sequence[float], unit: str) -> Figure:
    """The mean with its interval (normal approximation of the standard error)."""
    if len(values) == 1:
        return exact(values[0], unit)
    mean, half = statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return Figure(mean, mean - half, mean + half, len(values), unit)


def _name(spec: str, temperature: float) -> str:
    """Of figures: what the specification says, without its signs."""
    cleaned = spec.replace(":", "_").replace("=", "").replace(",", "_")
    return cleaned if temperature == 0 else f"{cleaned}_t{temperature:g}".replace(".", "")


if __name__ == "__main__":
    app()
