"""The draft head that ships for SmolLM2 at its default cut, trained on text of the model's own alone.

The text is what ``cutlayer bench self_talk`` left: conversations of the model with itself, with the states a server would have
returned. The training is that of ``cutlayer train-draft``; run the same again after an interruption and it goes on.

Writes src/cutlayer/client/speculation/head/heads/FINGERPRINT-START-STOP.safetensors; prints and writes the record
``draft_head_training``.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from cyclopts import App, Parameter
from rich.progress import Progress as Bar

from cutlayer.client.connect import Client, Options
from cutlayer.client.speculation.head import file as heads
from cutlayer.client.speculation.head.checkpoint import Progress
from cutlayer.client.speculation.head.examples import load_example
from cutlayer.client.speculation.head.file import load_head, own_head, save_head
from cutlayer.client.speculation.head.training import Recipe, train
from cutlayer.models.locate import locate
from cutlayer.records.record import exact, new_record
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from report import command, finish
from self_talk import SelfTalk

app = App(help=__doc__)


@app.default
def draft_head_training(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    batches: int = 64,
    held: int = 40,
    outputs: int = 8192,
    rank: int = 192,
    epochs: int = 4,
    rate: float = 1.5e-3,
    out: Path | None = None,
    write: bool = True,
) -> None:
    """Train and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    batches
        Of conversations, the one that is held out included.
    held
        Conversations of that one that acceptance is measured on.
    outputs
        Tokens the head may guess.
    rank
        Of the changes to the model's last layer.
    epochs
        Passes over the conversations at most.
    rate
        Highest learning rate.
    out
        The file to write; default: that of the package, without a record one beside the conversations.
    write
        Whether to write the record.
    """
    talk = SelfTalk.find(model, cut, batches)
    learned, kept_out = talk.learned(), talk.held()[:held]
    recipe = Recipe(outputs=outputs, rank=rank, epochs=epochs, rate=rate).checked()
    with (
        LocalServer(build_service(locate(model), model, cut, "bfloat16")) as server,
        Client(server.connect, Options(model=model, speculate="off")) as client,
        Bar() as bar,
    ):
        trusted = client.trusted
        name = own_head(trusted).name
        target = out or (Path(heads.__file__).parent / "heads" if write else talk.folder) / name
        target.parent.mkdir(exist_ok=True)
        task = bar.add_task("training", total=None)

        def report(step: int, steps: int, progress: Progress) -> None:
            bar.update(task, completed=step, total=steps, description=f"{max(progress.acceptance):.2f} tokens per trip")

        checkpoint = talk.folder / f"{name}.{_digest(recipe, talk, held)}.checkpoint"
        started = time.perf_counter()
        trained = train(trusted, learned, kept_out, recipe, checkpoint, report)
        seconds = time.perf_counter() - started
        tokens = sum(len(example.ids) - int(example.answer) for example in map(load_example, learned))
        save_head(trained.head, trusted, {"tokens": tokens, "texts": len(learned), "steps": trained.steps}, target)
        load_head(target, trusted)
        checkpoint.unlink()
    figures = {
        "heldout_tokens_per_trip": exact(trained.best, "tokens/trip", len(kept_out)),
        "heldout_tokens_per_trip_untrained": exact(trained.acceptance[0], "tokens/trip", len(kept_out)),
        "conversations": exact(len(learned), "count"),
        "tokens": exact(tokens, "tokens"),
        "steps": exact(trained.steps, "count"),
        "training_s": exact(seconds, "s"),
        "file_bytes": exact(target.stat().st_size, "bytes"),
    }
    config_ = {
        "model": model, "cut": cut, "dtype": "bfloat16", "text": talk.described(), "recipe": msgspec.to_builtins(recipe),
        "heldout_tokens_per_trip": f"chains of {recipe.depth} likeliest guesses", "threads": torch.get_num_threads(),
        "training_s": "since the last interruption",
        "load_average": os.getloadavg(),
    }  # fmt: skip
    samples = {"heldout_tokens_per_trip": trained.acceptance, "losses": trained.losses}
    finish(new_record("draft_head_training", command("draft_head_training"), config_, figures, samples), write=write)


def _digest(recipe: Recipe, talk: SelfTalk, held: int) -> str:
    """A training of other settings is not gone on with."""
    return hashlib.sha256(msgspec.json.encode((recipe, talk.batches, held))).hexdigest()[:8]


if __name__ == "__main__":
    app()
