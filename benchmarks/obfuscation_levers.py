"""What would hold: levers an owner has against the attacks on an obfuscated checkpoint, each with what it costs.

Against cancellation: noise on every weight, and a private model at growing distance from the public one, by real fine-tuning
(low-rank corrections, merged) and by random low-rank changes in its place. Against frequencies: a new key after so many tokens,
and decoy requests. What an attack reads is set against perplexity, a task, bytes uploaded, or tokens paid for.

Prints and writes the record ``obfuscation_levers`` and draws docs/figures/obfuscation_levers.svg from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import torch
from cyclopts import App
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cutlayer.attacks.keycut.attack import Public, build_attack
from cutlayer.attacks.keycut.weights import Weights
from cutlayer.attacks.lora import LoraLinear, adapt
from cutlayer.audit.keycut.material import Material, first_tokens, material
from cutlayer.audit.keycut.quality import Quality, perplexity, perplexity_increase, quality, relative_task_loss
from cutlayer.audit.keycut.run import Scene
from cutlayer.corpora.questions import questions
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.locate import locate
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure, Record, exact, new_record, read_record
from cutlayer.text.tokenizer import Tokenizer
from lazy_export import Change, lazy_export, unchanged
from obfuscated import plain_texts, task_items
from report import RECORDS, ROOT, command, finish

app = App(help=__doc__)

NOISE = (0.1, 0.2, 0.3)
"""Standard deviation on every matrix, over that of the matrix."""
LOW_RANK = (0.3, 1.0)
"""Length of a random low-rank change of every matrix inside the layers, over that of the matrix."""
RANK = 16
STEPS = (6, 18)
"""Of fine-tuning, after which distance and attack are measured."""
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RATE = 3e-3
BATCH, LENGTH = 2, 64
ROTATION = (500, 2000, 5000, 20_000)
"""Tokens under one key."""
DECOYS = (0.5, 0.9)
"""Share of the ids sent that are decoys."""
DECOY_TOKENS = 5000


class Run:
    """Everything measured so far."""

    def __init__(self, model: str, documents: int, items: int, ids: int) -> None:
        self.base = locate(model)
        encode = Tokenizer(self.base).encode
        self.text = material(encode, max(ROTATION))
        self.public = Public(Weights.open(self.base), self.text.corpus)
        self.documents, self.items = plain_texts(encode, documents), task_items(encode, items)
        self.tuning = [encode(question.text) for question in questions()]
        self.ids = ids
        self.model = load(self.base)
        self.plain = self._quality(unchanged)
        self.figures: dict[str, Figure] = {"plain_perplexity": perplexity(self.plain)}
        self.samples: dict[str, list[Any]] = {"facts": []}
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, lever: str, strength: float, change: Change) -> None:
        """Cancellation of an export of the changed base, and what the change costs."""
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
        self.figures[f"{name}_distance"] = exact(distance, "fraction")
        self.samples["facts"].append([name, outcome.facts])
        self.rows.append(row)
        sys.stderr.write(msgspec.json.encode(row).decode() + "\n")

    def traffic(self, name: str, log: list[list[int]], key: OwnerKey, sent: list[list[int]]) -> None:
        """Frequency and decipherment on a log of permuted ids, scored on what was really sent."""
        scene = Scene(lazy_export(self.base, key), key.client(), self.text._replace(sent=sent), self.ids)
        scene.held = scene.held._replace(log=log)
        for spec in ("frequency", "decipherment"):
            figure = scene.attack(build_attack(spec), spec, self.public).figures["occurrences"]
            if isinstance(figure, Figure):
                self.figures[f"{name}_{spec}_occurrences"] = figure
                sys.stderr.write(f"{name} {spec} {figure.value:.3f}\n")

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
    redraw
        Only draw the committed record again.
    """
    picture = ROOT / "docs" / "figures" / "obfuscation_levers.svg"
    if redraw:
        draw(read_record(RECORDS / "obfuscation_levers.json"), picture)
        return
    run = Run(model, documents, items, ids)
    run.measure("none", "none", 0.0, unchanged)
    for strength in NOISE:
        run.measure(f"noise_{_name(strength)}", "noise on every weight", strength, noise(strength))
    for strength in LOW_RANK:
        run.measure(f"lowrank_{_name(strength)}", "random low-rank change", strength, low_rank(strength))
    for steps, change in fine_tune(run.base, run.tuning):
        run.measure(f"tuned_{steps}", "fine-tuning", float(steps), change)
    _rotation(run)
    _decoys(run)
    record = new_record(
        "obfuscation_levers",
        command("obfuscation_levers"),
        {
            "model": model,
            "text": run.text.source,
            "quality": f"{documents} encyclopedia leads of the held-out part, first 64 tokens; {items} completions of our own",
            "noise": "Gaussian, on every matrix, embedding and head included, before an exact export",
            "lowrank": f"rank {RANK}, random, of every matrix inside the layers: a stand-in for a private model, not one",
            "tuned": f"LoRA, rank {RANK}, rate {RATE}, {BATCH} questions of our own of at most {LENGTH} tokens a step, "
            "merged; distance is that of all matrices, embedding included",
            "rotation": "a log of so many tokens under one key; uploads are whole float32 checkpoints",
            "decoys": f"{DECOY_TOKENS} real tokens; uniform: random ids; flattening: rare ids more, so that all counts are alike",
            "rows": run.rows,
        },
        run.figures,
        run.samples,
    )
    finish(record, write=write)
    if write:
        draw(record, picture)


def noise(strength: float) -> Change:
    """Gaussian, on every matrix."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        return tensor + strength * tensor.std() * torch.randn(tensor.shape, generator=_generator(name))

    return change


def low_rank(strength: float) -> Change:
    """A product of two random matrices, on every matrix inside the layers."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2 or ".layers." not in name:
            return tensor
        drawn = _generator(name)
        delta = torch.randn(len(tensor), RANK, generator=drawn) @ torch.randn(RANK, tensor.shape[1], generator=drawn)
        changed: torch.Tensor = tensor + strength * tensor.norm() / delta.norm() * delta
        return changed

    return change


def fine_tune(base: Path, texts: list[list[int]]) -> Iterator[tuple[int, Change]]:
    """Train low-rank corrections on texts; gives (steps so far, what they change of the base)."""
    torch.manual_seed(0)
    model = load(base)
    adapt(model, ADAPTED, RANK, 2.0 * RANK)
    corrected = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    for step in range(1, max(STEPS) + 1):
        loss = torch.zeros(())
        for number in range(BATCH):
            ids = torch.tensor([texts[(BATCH * step + number) % len(texts)][:LENGTH]])
            logits = model(ids, use_cache=False).logits[0, :-1]
            loss = loss + cross_entropy(logits, ids[0, 1:]) / BATCH
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        sys.stderr.write(f"step {step}, loss {float(loss):.3f}\n")
        if step in STEPS:
            deltas = {f"{name}.weight": (one.scale * one.b @ one.a).detach().clone() for name, one in corrected.items()}
            yield step, lambda name, tensor, deltas=deltas: tensor + deltas[name] if name in deltas else tensor  # type: ignore[misc]


def fill(model: Any, base: Path, change: Change) -> None:
    """Give a model the changed weights of its checkpoint."""
    held = Checkpoint(base)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in held.names():
            if name in parameters:
                parameters[name].copy_(change(name, held.read(name).float()))


def load(directory: Path) -> Any:
    """A whole model in float32."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def exact_key(base: Path) -> OwnerKey:
    """Of an export without noise of its own: only the lever is measured."""
    return create_owner_key(base, choose(base, mode="exact"))


def _rotation(run: Run) -> None:
    size = (run.base / "model.safetensors").stat().st_size
    for tokens in ROTATION:
        key = exact_key(run.base)
        sent = first_tokens(run.text.sent, tokens)
        run.traffic(f"rotation_{tokens}", [key.client().to_server(document) for document in sent], key, sent)
        run.figures[f"rotation_{tokens}_bytes_per_token"] = exact(size / tokens, "bytes")


def _decoys(run: Run) -> None:
    sent = first_tokens(run.text.sent, DECOY_TOKENS)
    vocabulary = Weights.open(run.base).vocabulary
    counts = np.bincount([token for document in sent for token in document], minlength=vocabulary).astype(float)
    flattening = counts.max() - counts
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


def _generator(name: str) -> torch.Generator:
    """The same draws whenever a tensor is read."""
    return torch.Generator().manual_seed(crc32(name.encode()))


if __name__ == "__main__":
    app()
