"""What a draft head learns from, gathered through the server: answers the model gives, and texts it reads.

Answers are what the head will have to guess at, and cost a round trip for every few tokens, so several sessions give them side by
side; the server runs those in one batch. Texts cost a prefill, which is many times faster. The target is in both what the model
would say next. What is there already is not gathered again.
"""

from __future__ import annotations

import queue
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, NamedTuple, Self

from cutlayer.client.decoder import Decoder
from cutlayer.client.generation import Generation, Request
from cutlayer.client.remote import RemoteBody
from cutlayer.client.sampling import Sampler, Sampling
from cutlayer.client.speculation.drafting import Drafting
from cutlayer.client.speculation.head.examples import save_example
from cutlayer.client.speculation.head.recording import Recorder
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.defences.defence import build_defence
from cutlayer.errors import CancelledError
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from cutlayer.client.speculation.head.examples import Example
    from cutlayer.client.trusted import Trusted
    from cutlayer.wire.transport import Connect


class Job(NamedTuple):
    """One text to gather."""

    name: str
    """Of its file."""
    ids: Sequence[int]
    """A prompt, or the whole text."""
    answer: int = 0
    """Tokens the model adds at most."""
    sampling: Sampling = Sampling()
    held: bool = False
    """Whether it is kept from training, to measure on."""


def answer_jobs(prompts: Sequence[Sequence[int]], count: int, most: int) -> list[Job]:
    """Answers to prompts, taken in turn: greedy the first time, then sampled. Every tenth prompt is held back, with all its
    answers."""
    jobs = []
    for i in range(count):
        turn, prompt = divmod(i, len(prompts))
        sampling = Sampling(temperature=0.7, seed=i) if turn else Sampling()
        jobs.append(Job(f"answer-{i:06}", prompts[prompt], most, sampling, held=prompt % 10 == 0))
    return jobs


def text_jobs(texts: Sequence[Sequence[int]]) -> list[Job]:
    """Texts to read."""
    return [Job(f"text-{i:06}", ids) for i, ids in enumerate(texts)]


def file_of(job: Job, folder: Path) -> Path:
    """Where its example is kept."""
    return folder / f"{job.name}.safetensors"


def collect(
    connect: Connect,
    trusted: Trusted,
    defence: str,
    jobs: Sequence[Job],
    folder: Path,
    sessions: int,
    done: Callable[[Job], None],
) -> None:
    """Gather what is missing.

    Args:
        connect: opens a connection to the server.
        trusted: this side's layers.
        defence: under which hidden states leave; the head will see what comes back under the same.
        jobs: what is wanted.
        folder: of the examples.
        sessions: answers gathered side by side.
        done: told of each that is there, from any thread.

    Raises:
        WireError: the server refuses, or is gone for good. What was gathered stays.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    missing = 0
    for job in jobs:
        if file_of(job, folder).is_file():
            done(job)
        else:
            waiting.put(job)
            missing += 1
    stop = threading.Event()

    def work() -> None:
        with _Session(connect, trusted, defence) as session:
            while not stop.is_set():
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                if (example := session.gather(job, stop.is_set)) is not None:
                    save_example(example, file_of(job, folder))
                    done(job)

    with ThreadPoolExecutor(max(sessions, 1)) as pool:
        running = [pool.submit(work) for _ in range(min(sessions, missing))]
        try:
            for future in as_completed(running):
                future.result()
        finally:
            stop.set()


class _Session:
    """One session that gathers text after text.

    Args:
        connect: opens its connection.
        trusted: this side's layers.
        defence: under which hidden states leave.
    """

    def __init__(self, connect: Connect, trusted: Trusted, defence: str) -> None:
        self._trusted = trusted
        self._remote = RemoteBody(connect)
        self._remote.open(trusted.info.fingerprint, trusted.cut, trusted.codec, trusted.info.hidden_size)
        protecting = build_defence(defence, Secret(secrets.token_bytes(32)), trusted.parts.head)
        self._decoder = Decoder(trusted.parts, self._remote, protecting, trusted.turn)
        self._recorder = Recorder(build_speculator("auto", trusted))
        self._drafting = Drafting(self._recorder, len(trusted.parts.head.embedding()))
        self._labels = {"defence": defence, "cut": str(trusted.cut)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remote.close()

    def gather(self, job: Job, stopped: Callable[[], bool]) -> Example | None:
        """The text, or nothing if `stopped` said so."""
        self._decoder.rollback(0)  # so that all of it is shown, whatever the one before began with
        try:
            if job.answer:
                self._answer(job, stopped)
            else:
                self._decoder.extend(job.ids, every=self._recorder.observe, cancelled=stopped)
        except CancelledError:
            return None
        return self._recorder.example(len(job.ids))

    def _answer(self, job: Job, stopped: Callable[[], bool]) -> None:
        request = Request(
            prompt=list(job.ids), max_tokens=job.answer, stop_ids=self._trusted.tokenizer.stop_ids, stop=()
        )
        sampler, tokenizer = Sampler(job.sampling), self._trusted.tokenizer
        generation = Generation(
            request, self._decoder, sampler, tokenizer, self._remote.traffic, self._drafting, self._labels
        )
        for _ in generation:
            if stopped():
                generation.close()
                raise CancelledError("stopped while an answer was being gathered")
