"""Many sessions for minutes while everything goes wrong: answers cancelled, connections cut, the server killed.

Every token that was given out is compared with the unsplit model's. When all clients have left, the server must hold no session,
no page and no more file handles than a freshly started one. Prints and writes the record ``soak``.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import psutil
import torch
from cyclopts import App, Parameter
from transformers import AutoModelForCausalLM

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, dialler
from cutlayer.client.generation import Generation
from cutlayer.client.remote import Patience
from cutlayer.errors import ConnectionLostError, CutlayerError
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, exact, new_record
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.wire.tls import client_context
from cutlayer.wire.transport import Connect, Transport
from report import PROMPTS, command, finish, prompt_texts

FEWEST_TOKENS: Final = 8
MOST_TOKENS: Final = 48
"""Of a prompt, and of an answer."""
NEAR_TIE: Final = 1e-3
"""Logits this close may change places between two orders of summation; a wrong token is counted all the same."""
_RECOVER_S: Final = 180.0
"""Patience with a server that is away: it takes long to start beside many busy clients."""
_IDLE_S: Final = 30
"""A session whose OPEN was answered into a cut connection belongs to nobody until it expires."""
_SETTLE_S: Final = 2 * _IDLE_S
_PROGRESS_S: Final = 30.0
_HANDLES: Final = 2
"""By how many the file handles may differ from a fresh server's."""

app = App(help=__doc__)


class Plan(NamedTuple):
    """What to do to how many."""

    model: str
    cut: str = "2:-2"
    sessions: int = 64
    seconds: float = 600.0
    kill_every_s: float = 30.0
    cut_every_s: float = 20.0
    """Mean time between two cuts of one session's connection."""
    cancelled: float = 0.15
    """Share of the answers that are given up."""
    reopened: float = 0.05
    """Share of the answers after which the client leaves and another one comes."""
    prompts: int = 16
    seed: int = 1


class Reference(NamedTuple):
    """A prompt and what the unsplit model answers."""

    prompt: list[int]
    tokens: list[int]
    margins: list[float]
    """By how much each token's logit exceeds the next best."""


class Outcome(NamedTuple):
    """What came of it."""

    counts: Counter[str]
    problems: list[dict[str, Any]]
    """Every answer that was not as it should be."""
    seconds: float
    handles_idle: int
    handles_after: int
    handles_under_load: list[int]
    memory_under_load: list[int]
    """Both of each server process, shortly before its end."""
    sessions_left: int
    """When the last client had gone."""
    sessions_after: int
    cache_bytes_after: int | None


class Line:
    """Opens connections, and cuts those that are in use."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._latest: dict[int, Transport] = {}

    def __call__(self) -> Transport:
        transport = self._latest[threading.get_ident()] = self._connect()
        return transport

    def cut(self, chance: random.Random) -> None:
        """Break the connection of one thread or another."""
        transports = list(self._latest.values())
        if transports:
            chance.choice(transports).break_connection()  # type: ignore[attr-defined]


def references(directory: Path, count: int, chance: random.Random) -> list[Reference]:
    """Prompts and the unsplit model's greedy answers, longer than any that will be asked for."""
    tokenizer = Tokenizer(directory)
    unsplit = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for text in prompt_texts(count):
        prompt = tokenizer.encode(text)[: chance.randint(FEWEST_TOKENS, MOST_TOKENS)]
        tokens: list[int] = []
        margins: list[float] = []
        cache, ids = None, torch.tensor([prompt])
        with torch.inference_mode():
            while len(tokens) < MOST_TOKENS:
                output = unsplit(ids, past_key_values=cache, use_cache=True)
                best = output.logits[0, -1].topk(2)
                tokens.append(int(best.indices[0]))
                margins.append(float(best.values[0] - best.values[1]))
                cache, ids = output.past_key_values, best.indices[:1].unsqueeze(0)
        found.append(Reference(prompt, tokens, margins))
    return found


def differences(got: list[int], expected: list[int], *, complete: bool) -> Counter[str]:
    """How an answer differs from the expected one, by the first place where it does.

    Args:
        got: tokens as they were given out.
        expected: all that were asked for.
        complete: whether it should have all of them; a cancelled answer may be shorter.
    """
    at = next((i for i, (one, other) in enumerate(zip(got, expected, strict=False)) if one != other), None)
    found: Counter[str] = Counter()
    if len(got) > len(expected):
        found["doubled"] += len(got) - len(expected)
    elif complete and len(got) < len(expected):
        found["lost"] += len(expected) - len(got)
    if at is not None:
        rest = got[at:]
        if at and rest == expected[at - 1 : at - 1 + len(rest)]:
            found["doubled"] = max(found["doubled"], 1)
        elif rest == expected[at + 1 : at + 1 + len(rest)]:
            found["lost"] = max(found["lost"], 1)
        else:
            found["wrong"] += sum(one != other for one, other in zip(got, expected, strict=False))
    return found


class Talker(threading.Thread):
    """One session after another, asking the prompts in random order until told to stop.

    Args:
        number: of the thread; its choices follow from it.
        shared: has the weights and knows the way to the server.
        known: prompts and their answers.
        plan: how often to cancel and to leave.
        over: set when no more answers are to begin.
    """

    def __init__(self, number: int, shared: Client, known: list[Reference], plan: Plan, over: threading.Event) -> None:
        super().__init__(name=f"talker-{number}")
        self.counts: Counter[str] = Counter()
        self.problems: list[dict[str, Any]] = []
        self._chance = random.Random(f"{plan.seed} {number}")
        self._client = shared
        self._known = known
        self._plan = plan
        self._over = over

    def run(self) -> None:
        """Talk."""
        try:
            self._enter()
            while not self._over.is_set():
                self._ask(self._chance.choice(self._known))
                if self._chance.random() < self._plan.reopened:
                    self._client.close()
                    self._enter()
                    self.counts["reopened"] += 1
        except Exception as error:
            self._problem(error=f"{type(error).__name__}: {error}"[:300])
            self.counts["died"] += 1
        finally:
            self._client.close()

    def _ask(self, known: Reference) -> None:
        chance = self._chance
        wanted = chance.randint(FEWEST_TOKENS, MOST_TOKENS)
        cancel = chance.choice(("close", "cancel")) if chance.random() < self._plan.cancelled else None
        stop_at = chance.randrange(wanted) if cancel == "close" else None
        generation = self._client.generate(known.prompt, max_tokens=wanted, ignore_eos=True)
        timer = threading.Timer(chance.uniform(0, 2), generation.cancel)
        if cancel == "cancel":
            timer.start()
        got: list[int] = []
        error = ""
        try:
            self._listen(generation, got, stop_at)
        except CutlayerError as caught:
            error = f"{type(caught).__name__}: {caught}"[:300]
        timer.cancel()
        result = generation.result()
        cancelled = not error and result.finish_reason == "cancelled"
        expected = known.tokens[:wanted]
        found = differences(got, expected, complete=not cancelled)
        if result.token_ids[: len(got)] != got or (not cancelled and not error and result.token_ids != got):
            found["wrong"] += 1
        self.counts += Counter(
            answers=1, tokens=len(got), resumes=result.resumes, cancels=cancelled, failed=bool(error), **found
        )
        if found or error:
            at = next((i for i, (one, other) in enumerate(zip(got, expected, strict=False)) if one != other), None)
            margin = None if at is None else known.margins[at]
            self._problem(
                prompt=self._known.index(known), wanted=wanted, got=len(got), error=error, first_difference=at,
                logit_margin=margin, near_tie=margin is not None and margin < NEAR_TIE, **found,
            )  # fmt: skip

    @staticmethod
    def _listen(generation: Generation, got: list[int], stop_at: int | None) -> None:
        for piece in generation:
            got.append(piece.token)
            if len(got) - 1 == stop_at:
                generation.close()
                return

    def _enter(self) -> None:
        """Open a session; while the server is down, try again."""
        deadline = time.monotonic() + _RECOVER_S
        while True:
            try:
                self._client = self._client.another()
            except ConnectionLostError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def _problem(self, **facts: Any) -> None:
        self.problems.append({"talker": self.name, **facts})
        sys.stderr.write(f"{self.name}: {facts}\n")


def health(server: ServerProcess) -> dict[str, Any]:
    """What /health says."""
    context = client_context(server.client_keys)
    with urllib.request.urlopen(server.url.replace("wss", "https") + "/health", context=context) as answer:  # noqa: S310
        return dict(json.load(answer))


def handles(server: ServerProcess) -> int:
    """Open file descriptors of the server process."""
    return psutil.Process(server.pid).num_fds()


def soak(plan: Plan) -> Outcome:
    """Run a plan.

    Raises:
        CutlayerError: the server did not start, or not again after it was killed.
    """
    chance = random.Random(plan.seed)
    known = references(locate(plan.model), plan.prompts, chance)
    # Twice the sessions: one that nobody owns any more must not keep a living one out.
    options = (f"--max-sessions={2 * plan.sessions}", f"--idle={_IDLE_S}")
    with ServerProcess(plan.model, plan.cut, options) as server:
        health(server)
        handles_idle = handles(server)
        line = Line(dialler(server.url, keys=server.client_keys))
        over = threading.Event()
        with Client(line, Options(model=plan.model, patience=Patience(recover_s=_RECOVER_S))) as shared:
            talkers = [Talker(number, shared, known, plan, over) for number in range(plan.sessions)]
        for talker in talkers:
            talker.start()
        counts: Counter[str] = Counter()
        loads: list[tuple[int, int]] = []
        started = time.monotonic()
        try:
            _spoil(server, line, plan, chance, talkers, counts, loads)
        finally:
            over.set()
            for talker in talkers:
                talker.join()
        seconds = time.monotonic() - started
        left = health(server)["sessions"]
        after, handles_after = _settled(server, handles_idle)
    for talker in talkers:
        counts += talker.counts
    return Outcome(
        counts, [problem for talker in talkers for problem in talker.problems], seconds, handles_idle, handles_after,
        [open_files for open_files, _ in loads], [memory for _, memory in loads], left, after["sessions"], after["cache_bytes"],
    )  # fmt: skip


def _spoil(
    server: ServerProcess, line: Line, plan: Plan, chance: random.Random, talkers: list[Talker], counts: Counter[str],
    loads: list[tuple[int, int]],
) -> None:  # fmt: skip
    """Cut connections and kill the server until the time is up."""
    started = time.monotonic()
    next_kill, next_word = started + plan.kill_every_s, started + _PROGRESS_S
    while (now := time.monotonic()) < started + plan.seconds and any(talker.is_alive() for talker in talkers):
        if now >= next_kill:
            process = psutil.Process(server.pid)
            loads.append((process.num_fds(), process.memory_info().rss))
            server.kill()
            server.start()
            counts["kills"] += 1
            next_kill = now + plan.kill_every_s
        if now >= next_word:
            next_word = now + _PROGRESS_S
            _say(now - started, talkers, counts)
        time.sleep(chance.expovariate(plan.sessions / plan.cut_every_s))
        line.cut(chance)
        counts["cuts"] += 1


def _say(seconds: float, talkers: list[Talker], counts: Counter[str]) -> None:
    total: Counter[str] = Counter(counts)
    for talker in talkers:
        total.update(dict(talker.counts))
    words = ", ".join(f"{total[name]} {name}" for name in _COUNTED if total[name] or name in _MUST_BE_NONE)
    sys.stderr.write(f"{seconds:.0f} s: {words}\n")


def _settled(server: ServerProcess, handles_idle: int) -> tuple[dict[str, Any], int]:
    """Health and file handles once nothing is left, or when there was time enough for that."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        after, open_files = health(server), handles(server)
        empty = not after["sessions"] and not after["cache_bytes"] and open_files <= handles_idle + _HANDLES
        if empty or time.monotonic() > deadline:
            return after, open_files
        time.sleep(0.2)


_MUST_BE_NONE: Final = ("lost", "doubled", "wrong", "failed", "died")
_COUNTED: Final = ("answers", "tokens", "cancels", "cuts", "kills", "resumes", "reopened", *_MUST_BE_NONE)


def unsound(outcome: Outcome) -> list[str]:
    """What must not be; empty if all is well."""
    found = [f"{outcome.counts[name]} {name}" for name in _MUST_BE_NONE if outcome.counts[name]]
    if outcome.sessions_after or outcome.cache_bytes_after:
        found.append(f"{outcome.sessions_after} sessions and {outcome.cache_bytes_after} bytes of pages left")
    if abs(outcome.handles_after - outcome.handles_idle) > _HANDLES:
        found.append(f"{outcome.handles_after} file handles, {outcome.handles_idle} when freshly started")
    return found


@app.default
def main(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    sessions: int = 64,
    minutes: float = 10.0,
    kill_every: float = 30.0,
    seed: int = 1,
    write: bool = True,
) -> None:
    """Soak, record, and fail if anything was lost, doubled, wrong or left behind.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    sessions
        At a time.
    minutes
        For how long.
    kill_every
        Seconds from one SIGKILL of the server to the next.
    seed
        Of prompts, lengths and faults; when they happen also depends on the machine.
    write
        Whether to write the record.
    """
    torch.set_num_threads(1)  # the server needs the other core
    plan = Plan(model, cut, sessions, 60 * minutes, kill_every, seed=seed)
    outcome = soak(plan)
    counts = outcome.counts
    figures: dict[str, Figure] = {
        **{f"{name}_tokens": exact(counts[name], "tokens", counts["tokens"]) for name in ("lost", "doubled", "wrong")},
        **{name: exact(counts[name], name) for name in _COUNTED if name not in {"lost", "doubled", "wrong"}},
        "seconds": exact(outcome.seconds, "s"),
        "file_handles_idle": exact(outcome.handles_idle, "handles"),
        "file_handles_after": exact(outcome.handles_after, "handles"),
        "sessions_when_the_last_client_left": exact(outcome.sessions_left, "sessions"),
        "sessions_after": exact(outcome.sessions_after, "sessions"),
    }
    if outcome.cache_bytes_after is not None:  # it is told only when there are no sessions
        figures["cache_bytes_after"] = exact(outcome.cache_bytes_after, "bytes")
    config = {
        **plan._asdict(), "dtype": "float32", "text": PROMPTS, "prompt_tokens": [FEWEST_TOKENS, MOST_TOKENS],
        "answer_tokens": [FEWEST_TOKENS, MOST_TOKENS], "near_tie": NEAR_TIE, "idle_s": _IDLE_S,
        "reference": "transformers, greedy, float32, unsplit", "transport": "TLS 1.3 on loopback",
    }  # fmt: skip
    samples: dict[str, list[Any]] = {
        "problems": outcome.problems,
        "file_handles_under_load": outcome.handles_under_load,
        "memory_under_load": outcome.memory_under_load,
    }
    finish(new_record("soak", command("soak"), config, figures, samples), write=write)
    if faults := unsound(outcome):
        sys.exit("the soak failed: " + "; ".join(faults))


if __name__ == "__main__":
    app()
