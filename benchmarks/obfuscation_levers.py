"""What would hold: levers an owner has against the attacks on an obfuscated checkpoint, each with what it costs.

Against cancellation: noise on every weight, and a private model at growing distance from the public one, by real fine-tuning
(low-rank corrections, merged) and by random low-rank changes in its place. Against frequencies: a new key after so many tokens,
and decoy requests. What an attack reads is set against perplexity, a task, bytes uploaded, or tokens paid for.

Prints and writes the record ``obfuscation_levers`` and draws docs/figures/obfuscation_levers.svg from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cyclopts import App

from changed_bases import BATCH, LENGTH, RANK, RATE, STEPS, fill, fine_tune, load, low_rank, noise
from cutlayer.attacks.keycut.attack import Public, build_attack
from cutlayer.attacks.keycut.weights import Weights
from cutlayer.audit.keycut.material import Material, first_tokens, material
from cutlayer.audit.keycut.quality import Quality, perplexity, perplexity_increase, quality, relative_task_loss
from cutlayer.audit.keycut.run import Scene
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.corpora.questions import questions
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.locate import locate
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure, Record, exact, new_record, read_record, write_record
from cutlayer.text.tokenizer import Tokenizer
from lazy_export import Change, lazy_export, unchanged, upload_bytes
from obfuscated import plain_texts, task_items
from report import RECORDS, ROOT, command, finish

app = App(help=__doc__)

NAME = "obfuscation_levers"

NOISE = (0.1, 0.2, 0.3)
"""Standard deviation on every matrix, over that of the matrix."""
LOW_RANK = (0.1, 0.3, 1.0)
"""Length of a random low-rank change of every matrix inside the layers, over that of the matrix."""
ROTATION = (500, 2000, 5000, 20_000)
"""Tokens under one key."""
DECOYS = (0.5, 0.9)
"""Share of the ids sent that are decoys."""
DECOY_TOKENS = 5000


class Run:
    """Everything measured so far."""

    def __init__(self, model: str, documents: int, items: int, ids: int, write: bool, resume: bool) -> None:
        self.base = locate(model)
        encode = Tokenizer(self.base).encode
        self.text = material(encode, max(ROTATION))
        self.public = Public(Weights.open(self.base), self.text.corpus)
        self.documents, self.items = plain_texts(encode, documents), task_items(encode, items)
        self.tuning = [encode(question.text) for question in questions()]
        self.ids, self.write = ids, write
        self.model = load(self.base)
        self.plain = self._quality(unchanged)
        self.figures: dict[str, Figure] = {"plain_perplexity": perplexity(self.plain)}
        self.samples: dict[str, list[Any]] = {"facts": [], "unmeasured": []}
        self.rows: list[dict[str, Any]] = []
        if resume:
            held = read_record(RECORDS / f"{NAME}.json")
            self.figures = {name: figure for name, figure in held.figures.items() if not name.startswith("rotation")}
            self.samples, self.rows = self.samples | held.samples, held.config["rows"]

    def measure(self, name: str, lever: str, strength: float, change: Change) -> None:
        """Cancellation of an export of the changed base, and what the change costs; nothing where that is known already."""
        if self.has(name):
            return
        distance = self._distance(change)
        found = self._quality(change)
        key = exact_key(self.base)
        scene = Scene(lazy_export(self.base, key, before=change), key.client(), self._short(), self.ids)
        outcome = scene.attack(build_attack("clx"), "clx", self.public)
        row: dict[str, Any] = {"name": name, "lever": lever, "strength": strength, "distance": distance}
        kept = {
            "clx_ids": outcome.figures["ids"],
            "clx_occurrences": outcome.figures["occurrences"],
            "perplexity": perplexity(found),
            "perplexity_increase": perplexity_increase(found, self.plain),
            "task_loss": relative_task_loss(found, self.plain),
        }
        for what, figure in kept.items():
            if isinstance(figure, Figure):
                self.figures[f"{name}_{what}"] = figure
                row[what] = figure.value
            else:
                self.samples["unmeasured"].append([f"{name}_{what}", figure.reason])
        self.figures[f"{name}_distance"] = exact(distance, "fraction")
        self.samples["facts"].append([name, outcome.facts])
        self.rows.append(row)
        sys.stderr.write(msgspec.json.encode(row).decode() + "\n")
        if self.write:
            write_record(self.record(), RECORDS)

    def has(self, name: str) -> bool:
        """Whether it was measured."""
        return any(row["name"] == name for row in self.rows)

    def traffic(self, name: str, log: list[list[int]], key: OwnerKey, sent: list[list[int]]) -> None:
        """Frequency and decipherment on a log of permuted ids, scored on what was really sent."""
        scene = Scene(lazy_export(self.base, key), key.client(), self.text._replace(sent=sent), self.ids)
        scene.held = scene.held._replace(log=log)
        for spec in ("frequency", "decipherment"):
            figure = scene.attack(build_attack(spec), spec, self.public).figures["occurrences"]
            if isinstance(figure, Unmeasured):
                self.samples["unmeasured"].append([f"{name}_{spec}_occurrences", figure.reason])
            else:
                self.figures[f"{name}_{spec}_occurrences"] = figure
                sys.stderr.write(f"{name} {spec} {figure.value:.3f}\n")

    def record(self) -> Record:
        """As it is now."""
        return new_record(
            NAME,
            command(NAME),
            {
                "model": str(self.base.name),
                "text": self.text.source,
                "quality": f"{len(self.documents)} encyclopedia leads of the held-out part, first 64 tokens; {len(self.items)} "
                "completions of our own",
                "noise": "Gaussian, the same draw at every strength, on every matrix, embedding and head included; then exported",
                "lowrank": f"rank {RANK}, random, of every matrix inside the layers: a stand-in for a private model, not one",
                "tuned": f"LoRA, rank {RANK}, rate {RATE}, {BATCH} questions of our own of at most {LENGTH} tokens a step, "
                "merged; distance is that of all matrices, embedding included",
                "rotation": "what is read of a log of so many tokens under one key is in obfuscation_attacks; uploads are "
                "whole float32 checkpoints",
                "decoys": f"{DECOY_TOKENS} real tokens; uniform: random ids; flattening: ids that were sent, the "
                "rarer the more, so that their counts come closer",
                "rows": self.rows,
            },
            self.figures,
            self.samples,
        )

    def _short(self) -> Material:
        return self.text._replace(sent=first_tokens(self.text.sent, 2000))

    def _quality(self, change: Change) -> Quality:
        fill(self.model, self.base, change)
        return quality(self.model, self.documents, self.items)

    def _distance(self, change: Change) -> float:
        """Length of the change of all matrices over that of the matrices."""
        held = Checkpoint(self.base)
        moved = length = 0.0
        for name in held.names():
            before = held.read(name).float()
            if before.dim() == 2:
                moved += float((change(name, before) - before).square().sum())
                length += float(before.square().sum())
        return math.sqrt(moved / length)


@app.default
def obfuscation_levers(
    *,
    model: str = "smollm2-135m",
    documents: int = 12,
    items: int = 30,
    ids: int = 1000,
    write: bool = True,
    resume: bool = False,
    redraw: bool = False,
) -> None:
    """Measure, record and draw.

    Parameters
    ----------
    model
        Name or directory.
    documents
        Of 64 tokens, on which perplexity is measured.
    items
        Of the completion task.
    ids
        Drawn at random, on which the share of the vocabulary is estimated.
    write
        Whether to write the record.
    resume
        Keep the levers against cancellation that the committed record has.
    redraw
        Only draw the committed record again.
    """
    picture = ROOT / "docs" / "figures" / "obfuscation_levers.svg"
    if redraw:
        draw(read_record(RECORDS / f"{NAME}.json"), picture)
        return
    run = Run(model, documents, items, ids, write, resume)
    run.measure("none", "none", 0.0, unchanged)
    for strength in NOISE:
        run.measure(f"noise_{_name(strength)}", "noise on every weight", strength, noise(strength))
    for strength in LOW_RANK:
        run.measure(f"lowrank_{_name(strength)}", "random low-rank change", strength, low_rank(strength))
    if not all(run.has(f"tuned_{steps}") for steps in STEPS):
        for steps, change in fine_tune(run.base, run.tuning):
            run.measure(f"tuned_{steps}", "fine-tuning", float(steps), change)
    _rotation(run)
    _decoys(run)
    finish(run.record(), write=write)
    if write:
        draw(run.record(), picture)


def exact_key(base: Path) -> OwnerKey:
    """Of an export without noise of its own: only the lever is measured."""
    return create_owner_key(base, choose(base, mode="exact"))


def _rotation(run: Run) -> None:
    size = upload_bytes(run.base, exact_key(run.base))
    for tokens in ROTATION:
        run.figures[f"rotation_{tokens}_bytes_per_token"] = exact(size / tokens, "bytes")


def _decoys(run: Run) -> None:
    sent = first_tokens(run.text.sent, DECOY_TOKENS)
    vocabulary = Weights.open(run.base).vocabulary
    counts = np.bincount([token for document in sent for token in document], minlength=vocabulary).astype(float)
    flattening = np.where(counts > 0, counts.max() - counts, 0)
    draws: dict[str, Callable[[np.random.Generator, int], Any]] = {
        "uniform": lambda drawn, size: drawn.integers(vocabulary, size=size),
        "flattening": lambda drawn, size: drawn.choice(vocabulary, size=size, p=flattening / flattening.sum()),
    }
    for kind, draw_ids in draws.items():
        for share in DECOYS:
            drawn = np.random.default_rng(0)
            decoys = draw_ids(drawn, round(DECOY_TOKENS * share / (1 - share)))
            requests = [*sent, *(chunk.tolist() for chunk in np.array_split(decoys, max(1, len(decoys) // 100)))]
            mixed = [requests[i] for i in drawn.permutation(len(requests))]
            key = exact_key(run.base)
            client = key.client()
            name = f"decoys_{kind}_{_name(share)}"
            run.traffic(name, [client.to_server(request) for request in mixed], key, sent)
            run.figures[f"{name}_tokens_paid"] = exact(1 / (1 - share), "ratio")


def draw(record: Record, picture: Path) -> None:
    """Share of tokens that cancellation reads, against what the change of the model costs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    mpl.rcParams["svg.hashsalt"] = "cutlayer"
    canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = canvas.add_subplot()
    for lever in dict.fromkeys(row["lever"] for row in record.config["rows"]):
        rows = [row for row in record.config["rows"] if row["lever"] == lever]
        axes.plot(
            [max(0.001, row["perplexity_increase"]) for row in rows],
            [row["clx_occurrences"] for row in rows],
            "o-",
            label=lever,
            clip_on=False,
        )
    axes.set(
        xscale="log", ylim=(0, 1.05), xlabel="increase of perplexity (1 = twice)", ylabel="tokens read by cancellation"
    )
    axes.axvline(0.05, color="grey", linestyle=":", linewidth=1)
    axes.legend(frameon=False)
    canvas.savefig(picture, metadata={"Date": None})


def _name(strength: float) -> str:
    return f"{strength:g}".replace(".", "_")


if __name__ == "__main__":
    app()
