"""Answers under faults: the server killed, the connection cut, the server frozen, in the middle of an answer.

Each trial compares the tokens with those of the undisturbed run. Prints and writes the record ``faults``.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from cyclopts import App
from rich.progress import track

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, dialler
from cutlayer.client.remote import Patience
from cutlayer.records.record import Figure, median, new_record, proportion
from cutlayer.wire.transport import Connect, Transport
from report import PROMPTS, finish, prompt_texts

PAUSE_S = 5.0

app = App(help=__doc__)


class Line:
    """A connection that can be cut."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._last: Transport | None = None

    def __call__(self) -> Transport:
        self._last = self._connect()
        return self._last

    def cut(self) -> None:
        """Break the present connection."""
        self._last.break_connection()  # type: ignore[union-attr]


@app.default
def faults(
    *, model: str = "smollm2-135m", trials: int = 20, tokens: int = 24, seed: int = 1, write: bool = True
) -> None:
    """Run `trials` of each fault and record."""
    figures: dict[str, Figure] = {}
    samples: dict[str, list[float]] = {}
    texts = prompt_texts(trials)
    chance = random.Random(seed)
    with ServerProcess(model) as server:

        def kill() -> None:
            server.kill()
            threading.Thread(target=server.start).start()

        def pause() -> None:
            server.pause()
            threading.Timer(PAUSE_S, server.proceed).start()

        line = Line(dialler(server.url, keys=server.client_keys))
        with Client(line, Options(model=model)) as client:
            prompts = [client.encode(text) for text in texts]
            undisturbed = [
                client.generate(ids, max_tokens=tokens, ignore_eos=True).result().token_ids
                for ids in track(prompts, "undisturbed")
            ]
        kinds: dict[str, tuple[Callable[[], None], Patience]] = {
            "killed": (kill, Patience()),
            "cut": (line.cut, Patience()),
            "paused": (pause, Patience()),
            "paused_impatient": (pause, Patience(step_s=1.0)),
        }
        for kind, (fault, patience) in kinds.items():
            identical, resumed, extra = 0, [], []
            for ids, expected in track(list(zip(prompts, undisturbed, strict=True)), kind):
                with Client(line, Options(model=model, patience=patience)) as client:
                    at = chance.randrange(2, tokens - 2)
                    got: list[int] = []
                    started = time.perf_counter()
                    generation = client.generate(ids, max_tokens=tokens, ignore_eos=True)
                    for piece in generation:
                        got.append(piece.token)
                        if len(got) == at:
                            fault()
                    extra.append(time.perf_counter() - started)
                    identical += got == expected
                    resumed.append(float(generation.result().resumes))
            figures[f"identical_{kind}"] = proportion(identical, trials)
            figures[f"seconds_{kind}"] = median(extra, "s per answer")
            samples[f"resumes_{kind}"] = resumed
            samples[f"seconds_{kind}"] = extra
    config = {
        "model": model, "cut": "2:-2", "dtype": "float32", "text": PROMPTS, "trials_per_fault": trials,
        "tokens_per_answer": tokens, "seed": seed, "pause_s": PAUSE_S, "transport": "TLS 1.3 on loopback",
    }  # fmt: skip
    finish(new_record("faults", "cutlayer bench faults", config, figures, samples), write=write)


if __name__ == "__main__":
    app()
