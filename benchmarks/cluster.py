"""Two replicas of two stages on a Ray cluster of two nodes, beside a single server: the same tokens, through a death too,
and what the cluster costs per step.

Both nodes are on this machine, so no network between stages is part of the figures. Prints and writes the record ``cluster``.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import psutil
import ray
from cyclopts import App, Parameter
from ray.cluster_utils import Cluster
from rich.progress import track

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, connect
from cutlayer.records.record import exact, median, new_record, proportion
from report import PROMPTS, command, finish, prompt_texts

app = App(help=__doc__)
_STAGE = "ray::Stage"


@app.default
def cluster(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    prompts: int = 20,
    deaths: int = 4,
    tokens: int = 32,
    seed: int = 1,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    prompts
        Answered by both servers in turn.
    deaths
        How often a stage's process is killed while two sessions are being answered.
    tokens
        Of each answer.
    seed
        Of where a death strikes.
    write
        Whether to write the record.
    """
    chance = random.Random(seed)
    with _nodes() as address:
        fleet = (f"--ray={address}", "--replicas=2", "--stages=2", "--sessions-per-replica=1")
        with (
            ServerProcess(model, cut) as single,
            ServerProcess(model, cut, fleet, start_s=300.0) as several,
            connect(single.url, keys=single.client_keys, options=Options(model=model, speculate="off")) as plain,
            connect(several.url, keys=several.client_keys, options=Options(model=model, speculate="off")) as first,
            first.another() as second,
        ):
            asked = [plain.encode(text) for text in prompt_texts(prompts)]
            same, extra, single_ms, expected = 0, [], [], []
            for number, ids in enumerate(track(asked, "both")):
                one, one_ms = _answer(plain, ids, tokens)
                other, other_ms = _answer((first, second)[number % 2], ids, tokens)
                expected.append(one)
                same += one == other
                single_ms.append(one_ms)
                extra.append(other_ms - one_ms)
            survived = resumes = 0
            for number in track(range(deaths), "deaths"):
                ids = asked[number % prompts]
                others = second.generate(asked[0], max_tokens=tokens, ignore_eos=True)
                beside = iter(others)
                generation = first.generate(ids, max_tokens=tokens, ignore_eos=True)
                at = chance.randrange(2, tokens - 2)
                got = []
                for piece in generation:
                    got.append(piece.token)
                    next(beside)
                    if len(got) == at:
                        os.kill(_some_stage(chance), signal.SIGKILL)
                answers = generation.result(), others.result()
                resumes += sum(answer.resumes for answer in answers)
                survived += got == expected[number % prompts] and answers[1].token_ids == expected[0]
    figures = {
        "identical_tokens": proportion(same, prompts),
        "identical_after_a_death": proportion(survived, deaths),
        "sessions_resumed": exact(resumes, "sessions", deaths),
        "single_step_ms": median(single_ms, "ms"),
        "extra_ms_per_step": median(extra, "ms"),
        "step_over_single": exact(1 + statistics.median(extra) / statistics.median(single_ms), "ratio", prompts),
    }
    config = {
        "model": model, "cut": cut, "dtype": "float32", "text": PROMPTS, "tokens_per_answer": tokens, "seed": seed,
        "cluster": "two nodes on this machine", "replicas": 2, "stages": 2, "ray": ray.__version__,
    }  # fmt: skip
    samples = {"single_step_ms": single_ms, "extra_ms_per_step": extra}
    finish(new_record("cluster", command("cluster"), config, figures, samples), write=write)


@contextmanager
def _nodes() -> Iterator[str]:
    """Address of a cluster of two nodes."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    nodes.add_node(num_cpus=2)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def _answer(client: Client, ids: list[int], tokens: int) -> tuple[list[int], float]:
    """Tokens, and the median milliseconds of a step without this side's model time."""
    generation = client.generate(ids, max_tokens=tokens, ignore_eos=True)
    result = generation.result()
    return result.token_ids, 1e3 * statistics.median(step.total - step.client for step in generation.timings[1:])


def _some_stage(chance: random.Random) -> int:
    """One of the stages' processes."""
    stages = [process for process in psutil.process_iter(["name", "cmdline"]) if _is_stage(process)]
    return chance.choice(stages).pid


def _is_stage(process: psutil.Process) -> bool:
    return any(_STAGE in part for part in (process.info["name"] or "", *(process.info["cmdline"] or ())))


if __name__ == "__main__":
    app()
