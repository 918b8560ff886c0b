"""What the benchmarks of attacks share: prompts, the attacker's text, observations, and scores over documents.

Every seed has prompts and sessions of its own, and figures are over the documents of all; an attack is prepared once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from cutlayer.attacks.attack import Auxiliary, Guess, Observation, Threat, build_attack, prepare
from cutlayer.attacks.prior import Prior
from cutlayer.audit.material import Item, attackers, victims
from cutlayer.audit.metrics.scores import SampleScores
from cutlayer.audit.metrics.summary import METRICS, advantages, summarise
from cutlayer.audit.reading import read_all
from cutlayer.audit.scene import Scene, victim_secret
from cutlayer.audit.scoring import scores_of
from cutlayer.defences.defence import build_channel
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, Record, exact
from cutlayer.text.tokenizer import Tokenizer
from report import recorded


class Victim(NamedTuple):
    """One prompt of one seed."""

    item: Item
    seed: int


class Reading(NamedTuple):
    """What an attack made of one prompt."""

    victim: Victim
    guess: Guess
    seconds: float


class Study:
    """Prompts, text and models of a benchmark.

    Args:
        model: name or directory.
        prompts: how many in all.
        seeds: among which they are divided.
        pairs: tokens of the attacker's text.
    """

    def __init__(self, model: str, prompts: int, seeds: int, pairs: int) -> None:
        self.model = model
        self.directory: Path = locate(model)
        self.tokenizer = Tokenizer(self.directory)
        self.layers: int = read_config(self.directory).num_hidden_layers
        self.seeds = range(seeds)
        self.victims: list[Victim] = []
        sources = []
        for seed in self.seeds:
            count = prompts // seeds + (seed < prompts % seeds)
            material = victims(self.tokenizer.encode, b"study", None, count, 0, seed)
            self.victims += [Victim(item, seed) for item in material.items]
            sources.append(f"seed {seed}: {material.prompts.source}")
        self.sources = sources
        self._vocabulary: int = read_config(self.directory).vocab_size
        self.ids, self.owned = attackers(self.tokenizer.encode, self._vocabulary, None, pairs)
        self.prior = Prior.load(self.directory)
        self._blind = prepare(build_attack("prior-only"), Threat("W0", build_channel("none"), prior=self.prior))
        self.scene = cache(self._scene)
        self.states = cache(self._states)

    def _scene(self, depth: int) -> Scene:
        """Undefended, cut after `depth` layers."""
        return Scene.load(self.model, f"{depth}:{max(depth + 1, self.layers - 2)}")

    def _states(self, depth: int) -> torch.Tensor:
        """Hidden states of the attacker's text, [S, T, D]."""
        return self.scene(depth).auxiliary(self.ids).released

    def spread(self, count: int) -> list[Victim]:
        """About `count` of the prompts, as many of each seed."""
        each = -(-count // len(self.seeds))
        return [victim for seed in self.seeds for victim in [v for v in self.victims if v.seed == seed][:each]]

    def observe(self, scene: Scene, victim: Victim, repeats: int = 1) -> Observation:
        """What the server holds of a prompt."""
        item, seed = victim
        return scene.observe(item.ids, [victim_secret(seed, item.id, i) for i in range(repeats)])

    def auxiliary(self, scene: Scene, depth: int, repeats: int = 1) -> Auxiliary:
        """The attacker's text through a scene's defence."""
        return scene.auxiliary(self.ids, repeats, hidden=self.states(depth))

    def attack(
        self,
        spec: str,
        threat: Threat,
        scene: Scene,
        label: str,
        victims: Sequence[Victim] | None = None,
        repeats: int = 1,
    ) -> list[Reading]:
        """Prepare an attack and read prompts, with a progress bar; None reads them all."""
        chosen = self.victims if victims is None else victims
        reader = prepare(build_attack(spec), threat)
        observations = [self.observe(scene, victim, repeats) for victim in chosen]
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=1.0)
            timed = read_all(reader, observations, lambda share: bar.update(task, completed=share))
        return [Reading(victim, *one) for victim, one in zip(chosen, timed, strict=True)]

    def scores(self, readings: Sequence[Reading]) -> list[SampleScores]:
        """One per prompt."""
        return [scores_of(self.tokenizer, reading.victim.item, reading.guess.tokens.tolist()) for reading in readings]

    def blind(self, readings: Sequence[Reading]) -> list[SampleScores]:
        """What a language model that sees nothing scores on the same prompts."""
        return [
            scores_of(self.tokenizer, reading.victim.item, self.blind_tokens(reading.victim)) for reading in readings
        ]

    def blind_tokens(self, victim: Victim) -> list[int]:
        """Of the same length as the prompt."""
        length = len(victim.item.ids)
        tokens: list[int] = self._blind.read(Observation(torch.zeros(1, length, 1))).tokens.tolist()
        return tokens

    def found(self, readings: Sequence[Reading]) -> dict[str, Figure]:
        """All figures that can be measured, by metric."""
        scores = self.scores(readings)
        found = {name: figure for name, figure in summarise(scores).items() if isinstance(figure, Figure)}
        gained = advantages(scores, self.blind(readings))
        for metric, name in (("token_accuracy", "advantage"), ("content_accuracy", "content_advantage")):
            if isinstance(figure := gained[metric], Figure):
                found[name] = figure
        tokens = sum(len(reading.victim.item.ids) for reading in readings)
        found["seconds_per_token"] = exact(sum(reading.seconds for reading in readings) / tokens, "s", tokens)
        tried = [reading.guess.effort["candidates"] for reading in readings if "candidates" in reading.guess.effort]
        if tried:
            found["vocabulary_explored"] = exact(sum(tried) / tokens / self._vocabulary, "fraction", tokens)
        return found

    def figures(self, label: str, readings: Sequence[Reading]) -> tuple[dict[str, Figure], dict[str, list[Any]]]:
        """`found` under ``LABEL_METRIC``, and the raw token accuracies."""
        scores = self.scores(readings)
        return (
            {f"{label}_{name}": figure for name, figure in self.found(readings).items()},
            {
                f"{label}_token_accuracy": [s.token_accuracy for s in scores],
                f"{label}_tokens": [s.tokens for s in scores],
            },
        )

    def measured(self, depth: int, defence: str, attack: str, accuracy: Figure, record: str) -> dict[str, Any]:
        """An entry of the table that demo, chat and doctor quote."""
        return {
            "model": self.model, "cut_start": depth, "defence": defence, "attack": attack,
            "token_accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n,
            "record": record,
        }  # fmt: skip

    def recorded(self, name: str) -> Record | None:
        """See `report.recorded`; of the same model, prompts and text."""
        return recorded(name, self.config(), ("model", "prompt_ids", "pairs"))

    def config(self) -> dict[str, Any]:
        """What every record says."""
        lengths = [len(victim.item.ids) for victim in self.victims]
        return {
            "model": self.model, "dtype": "float32", "prompts": self.sources, "prompt_count": len(self.victims),
            "prompt_tokens": {"shortest": min(lengths), "longest": max(lengths), "sum": sum(lengths)},
            "prompt_ids": [victim.item.id for victim in self.victims], "attacker_text": self.owned.source,
            "pairs": self.owned.pairs, "seeds": list(self.seeds), "metrics": list(METRICS),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
