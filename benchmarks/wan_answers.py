"""Answers over a link, and what each round trip of them took: what `wan.py` measures."""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from rich.progress import Progress

from cutlayer.client.connect import Client
from cutlayer.client.sampling import Sampling
from report import PROMPTS_OF_WAN

TYPES: Final = ("chat", "code", "structured", "creative", "edit")
"""Of text: answers, programs, tables and lists, stories, and passages repeated with a small change."""


class Prompt(NamedTuple):
    """One question."""

    id: str
    type: str
    text: str


class Trip(NamedTuple):
    """One round trip, times in seconds."""

    rows: int
    """Tokens, guesses included, that were waited for."""
    total: float
    client: float
    server: float
    sent: int
    """Tokens, guesses included."""


class Answer(NamedTuple):
    """One answer."""

    prompt: str
    type: str
    tokens: int
    digest: str
    """Of the token ids."""
    seconds: float
    """By the clock on the wall, from the first token to the last."""
    draft: float
    """Of that, guessing."""
    sent: int
    """Bytes of messages, prefill included."""
    received: int
    trips: list[Trip]
    """After the prefill."""

    @property
    def per_trip(self) -> float:
        """Tokens a round trip brought."""
        return (self.tokens - 1) / len(self.trips)


def read_prompts(each: int) -> list[Prompt]:
    """The first `each` of every type."""
    lines = (Path(__file__).parent / PROMPTS_OF_WAN).read_text(encoding="utf-8").splitlines()
    prompts = [Prompt(**json.loads(line)) for line in lines]
    return [prompt for kind in TYPES for prompt in [p for p in prompts if p.type == kind][:each]]


def ask(client: Client, prompt: Prompt, tokens: int, temperature: float) -> Answer:
    """One answer of `tokens` tokens in a session that starts from nothing."""
    client.forget()
    sampling = Sampling(temperature=temperature, seed=1)
    generation = client.generate(prompt.text, max_tokens=tokens, sampling=sampling, ignore_eos=True)
    next(iter(generation), None)
    started = time.perf_counter()
    result = generation.result()
    seconds = time.perf_counter() - started
    trips = [Trip(step.rows, step.total, step.client, step.server, step.sent) for step in generation.timings[1:]]
    draft = result.timings_ms["draft"] / 1e3
    digest = hashlib.sha256(json.dumps(result.token_ids).encode()).hexdigest()[:16]
    return Answer(
        prompt.id, prompt.type, len(result.token_ids), digest, seconds, draft,
        result.bytes.sent, result.bytes.received, trips,
    )  # fmt: skip


def ask_all(
    clients: Sequence[Client], prompts: Sequence[Prompt], tokens: int, temperature: float, label: str
) -> list[Answer]:
    """Answers to all prompts, by as many sessions at once as there are clients."""
    free: SimpleQueue[Client] = SimpleQueue()
    for client in clients:
        free.put(client)
    lock = threading.Lock()
    with Progress(transient=True) as progress, ThreadPoolExecutor(len(clients)) as pool:
        task = progress.add_task(label, total=len(prompts))

        def one(prompt: Prompt) -> Answer:
            client = free.get()
            try:
                return ask(client, prompt, tokens, temperature)
            finally:
                free.put(client)
                with lock:
                    progress.advance(task)

        return list(pool.map(one, prompts))


def by_type(answers: Sequence[Answer], value: Any) -> dict[str, list[float]]:
    """Values of answers by type of text."""
    values: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        values[answer.type].append(value(answer))
    return values


def tokens_per_s(answers: Sequence[Answer]) -> float:
    """Of all answers together, after their first tokens."""
    return sum(answer.tokens - 1 for answer in answers) / sum(answer.seconds for answer in answers)


class TripModel(NamedTuple):
    """Seconds of a round trip: link, head and tail, body, and bytes (the synchronous model)."""

    client: tuple[float, float]
    """Of no rows, and of each."""
    server: tuple[float, float]
    other: float
    """Beyond round trip, computing and bytes: framing, encryption, threads waking up."""
    row_bytes: int

    @classmethod
    def fit(cls, trips: Sequence[Trip], rtt_s: float, bytes_per_s: float, row_bytes: int) -> TripModel:
        """From round trips over one link."""
        rows = [trip.rows for trip in trips]
        client = _line(rows, [trip.client for trip in trips])
        server = _line(rows, [trip.server for trip in trips])
        wire = [trip.total - trip.client - trip.server - 2 * trip.rows * row_bytes / bytes_per_s for trip in trips]
        return cls(client, server, statistics.median(wire) - rtt_s, row_bytes)

    def seconds(self, rows: int, rtt_s: float, bytes_per_s: float) -> float:
        """Of a round trip over any link."""
        computing = self.client[0] + self.server[0] + (self.client[1] + self.server[1]) * rows
        return self._link(rows, rtt_s, bytes_per_s) + computing

    def around_computing(self, trip: Trip, rtt_s: float, bytes_per_s: float) -> float:
        """The same, with the computing that a trip took."""
        return self._link(trip.rows, rtt_s, bytes_per_s) + trip.client + trip.server

    def _link(self, rows: int, rtt_s: float, bytes_per_s: float) -> float:
        return rtt_s + self.other + 2 * rows * self.row_bytes / bytes_per_s


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares: base and slope; a slope of 0 where all x are alike."""
    if len(set(x)) == 1:
        return statistics.fmean(y), 0.0
    slope, base = statistics.linear_regression(x, y)
    return base, slope
