"""What a host reads from an obfuscated checkpoint: every attack on every mode, cancellation on rounded weights and other
families, and the attacks on traffic alone against the length of the log.

Shares are of the vocabulary (``ids``) and of the tokens sent (``occurrences``). Prints and writes the record
``obfuscation_attacks``, which is kept up to date while the run goes on.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App

from cutlayer.attacks.keycut.attack import Attack, Public, Reader, build_attack
from cutlayer.attacks.keycut.weights import Weights
from cutlayer.audit.keycut.material import Material, first_tokens, material
from cutlayer.audit.keycut.run import Outcome, Scene
from cutlayer.audit.keycut.scoring import SHARES
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.corpora.questions import questions
from cutlayer.errors import InputError
from cutlayer.models.locate import locate
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure, exact, new_record, read_record, write_record
from cutlayer.text.tokenizer import Tokenizer
from lazy_export import Change, lazy_export, rounded, unchanged
from report import RECORDS, command, finish
from second_families import as_qwen2, random_model

app = App(help=__doc__)

NAME = "obfuscation_attacks"

MODES: dict[str, dict[str, Any]] = {
    "exact": {"mode": "exact"},
    "noisy": {"mode": "noisy"},
    "paper": {"mode": "paper"},
}
ATTACKS = {
    "nearest_row": "nearest-row",
    "vocabulary_matching": "vocabulary-matching",
    "gate_means": "gate-means",
    "clx": "clx",
    "known_100": "known-plaintext:pairs=100",
    "known_300": "known-plaintext:pairs=300",
    "known_1000": "known-plaintext:pairs=1000",
    "known_embedding_1000": "known-plaintext:pairs=1000,rows=embedding",
    "fingerprint": "fingerprint:candidates=8192",
    "states_first_blind": "states:depth=0,keys=none",
    "states_first_clx": "states:depth=0,keys=clx",
    "states_half_blind": "states:depth=0.5,keys=none",
    "states_half_clx": "states:depth=0.5,keys=clx",
}
WIDE = {"vocabulary_matching_wide": "vocabulary-matching:layers=1,columns=65536"}
"""With the products that have as many columns as the vocabulary; minutes by themselves."""

Settings = dict[str, tuple[dict[str, Any], Change]]
"""Name → options of `choose`, and what is done to the export afterwards."""

CLX: Settings = {
    "paper_per_writer": ({"mode": "paper", "per_writer_keys": True}, unchanged),
    "paper_bf16": ({"mode": "paper", "dtype": "bfloat16"}, unchanged),
    "paper_int8": ({"mode": "paper"}, rounded(8)),
    "paper_int4": ({"mode": "paper"}, rounded(4)),
    "paper_double_noise": ({"mode": "paper", "alpha_e": 2.0, "alpha_h": 0.4}, unchanged),
    "exact_int4": ({"mode": "exact"}, rounded(4)),
}
PARTS = ("weights", "traffic", "modes")
"""Cancellation on other keys, rounded weights and other families; attacks on traffic alone; everything on every mode."""

TRAFFIC = {"frequency": "frequency", "decipherment": "decipherment"}
LENGTHS = (500, 2000, 5000, 20_000, 100_000, 200_000)


class Run:
    """What is measured, and the record of it."""

    def __init__(self, config: dict[str, Any], write: bool) -> None:
        self.config, self.write = config, write
        self.figures: dict[str, Figure] = {}
        self.samples: dict[str, list[Any]] = {"facts": [], "unmeasured": []}

    def keep(self, prefix: str, name: str, outcome: Outcome) -> None:
        """The figures of one attack; what has none is listed with its reason."""
        self.samples["facts"] = [one for one in self.samples["facts"] if one[:2] != [prefix, name]]
        keys = {f"{prefix}_{name}_{share}" for share in SHARES}
        self.samples["unmeasured"] = [one for one in self.samples["unmeasured"] if one[0] not in keys]
        for share in SHARES:
            figure = outcome.figures[share]
            if isinstance(figure, Unmeasured):
                self.samples["unmeasured"].append([f"{prefix}_{name}_{share}", figure.reason])
            else:
                self.figures[f"{prefix}_{name}_{share}"] = figure
        if outcome.seconds is not None:
            self.figures[f"{prefix}_{name}_seconds"] = exact(outcome.seconds, "s")
        self.samples["facts"].append([prefix, name, outcome.facts])
        shown = {share: getattr(outcome.figures[share], "value", None) for share in SHARES}
        sys.stderr.write(f"{prefix} {name} {shown} {outcome.facts} {outcome.seconds}\n")
        if self.write:
            write_record(self.record(), RECORDS)

    def go_on(self) -> None:
        """Keep what the committed record has."""
        held = read_record(RECORDS / f"{NAME}.json")
        for key in ("model", "tokens_sent", "ids_sampled"):
            if held.config[key] != self.config[key]:
                raise InputError(f"the record has {key} {held.config[key]}, not {self.config[key]}; measure all parts")
        self.figures = dict(held.figures)
        self.samples = dict(held.samples)
        self.config = held.config | self.config | {"written": "part by part"}

    def record(self) -> Any:
        """As it is now."""
        return new_record(NAME, command(NAME), self.config, self.figures, self.samples)


@app.default
def obfuscation_attacks(
    *,
    model: str = "smollm2-135m",
    tokens: int = 2000,
    ids: int = 1000,
    modes: tuple[str, ...] = tuple(MODES),
    parts: tuple[str, ...] = PARTS,
    wide: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    tokens
        Sent to the host, in the attacks on every mode.
    ids
        Drawn at random, on which the share of the vocabulary is estimated.
    modes
        Attacked with everything.
    parts
        Measured; what the committed record has of the others is kept.
    wide
        Also match by the products that have as many columns as the vocabulary.
    write
        Whether to write the record.
    """
    base = locate(model)
    encode = Tokenizer(base).encode
    text = material(encode, max(LENGTHS))
    short = text._replace(sent=first_tokens(text.sent, tokens))
    attacks = ATTACKS | (WIDE if wide else {})
    run = Run(
        {
            "model": model,
            "text": text.source,
            "tokens_sent": tokens,
            "ids_sampled": ids,
            "modes": MODES,
            "attacks": attacks | TRAFFIC,
            "rounding": "round to nearest, symmetric, groups of 64",
            "second_families": "qwen2: this model's weights in a qwen2 with random biases; qwen3: random weights, 8 layers of "
            "width 256, vocabulary 8192, random ids as text. No other trained weights were at hand.",
            "keys": "fresh for every setting",
        },
        write,
    )
    if set(parts) != set(PARTS):
        run.go_on()
    public = Public(Weights.open(base), text.corpus)
    if "weights" in parts:
        _variants(run, base, short, ids)
    if "traffic" in parts:
        _traffic(run, base, text, ids, [question.text for question in questions()], encode, public)
    if "modes" in parts:
        _modes(run, base, short, ids, public, attacks, modes)
    finish(run.record(), write=write)


def _key(base: Path, settings: dict[str, Any]) -> OwnerKey:
    return create_owner_key(base, choose(base, **settings))


def _modes(
    run: Run, base: Path, text: Material, ids: int, public: Public, attacks: dict[str, str], modes: tuple[str, ...]
) -> None:
    """Every attack that uses weights on every mode."""
    prepared: dict[str, tuple[Attack, Reader]] = {}
    for name, spec in attacks.items():
        attack = build_attack(spec)
        prepared[name] = attack, attack.prepare(public)
    for mode in modes:
        key = _key(base, MODES[mode])
        with tempfile.TemporaryDirectory() as scratch:
            export(base, Path(scratch) / mode, key)
            scene = Scene(Weights.open(Path(scratch) / mode), key.client(), text, ids)
            for name, (attack, reader) in prepared.items():
                run.keep(mode, name, scene.attack(attack, attacks[name], public, reader))


def _variants(run: Run, base: Path, text: Material, ids: int) -> None:
    """Cancellation on variants of the keys, on rounded weights, and on other families."""
    with tempfile.TemporaryDirectory() as scratch:
        _weights(run, base, text, ids, CLX, ("clx",))
        qwen2 = as_qwen2(base, Path(scratch) / "qwen2")
        _weights(run, qwen2, text, ids, {"qwen2_paper": ({"mode": "paper"}, unchanged)}, ("clx",))
        drawn = np.random.default_rng(0).integers(8192, size=(50, 100)).tolist()
        qwen3 = random_model(Path(scratch) / "qwen3")
        settings: Settings = {f"qwen3_{mode}": (MODES[mode], unchanged) for mode in ("exact", "paper")}
        _weights(run, qwen3, Material(drawn, drawn, "random ids"), ids, settings, ("clx", "vocabulary-matching"))


def _weights(
    run: Run,
    base: Path,
    text: Material,
    ids: int,
    settings: Settings,
    attacks: tuple[str, ...],
) -> None:
    """Attacks that need nothing but weights."""
    public = Public(Weights.open(base))
    for name, (chosen, after) in settings.items():
        key = _key(base, chosen)
        scene = Scene(lazy_export(base, key, after=after), key.client(), text, ids)
        for spec in attacks:
            run.keep(name, spec.replace("-", "_"), scene.attack(build_attack(spec), spec, public))


def _traffic(run: Run, base: Path, text: Material, ids: int, asked: list[str], encode: Any, public: Public) -> None:
    """Frequency and decipherment, which see no weights: any export will do."""
    key = _key(base, MODES["exact"])
    held = lazy_export(base, key)
    logs = {f"log_{length}": first_tokens(text.sent, length) for length in LENGTHS}
    logs["log_questions"] = [encode(question) for question in asked]
    run.config["log_questions_tokens"] = sum(map(len, logs["log_questions"]))
    run.config["ids_in_log"] = {
        name: len({token for document in log for token in document}) for name, log in logs.items()
    }
    prepared = {name: (attack := build_attack(spec), attack.prepare(public)) for name, spec in TRAFFIC.items()}
    for prefix, log in logs.items():
        scene = Scene(held, key.client(), text._replace(sent=log), ids)
        for name, (attack, reader) in prepared.items():
            run.keep(prefix, name, scene.attack(attack, TRAFFIC[name], public, reader))


if __name__ == "__main__":
    app()
