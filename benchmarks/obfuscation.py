"""What obfuscation costs the answers: greedy tokens without noise, and perplexity and a task against the noise (α_e, α_h).

The figures of attacks and of engines come from the records ``obfuscation_attacks`` (to be measured before) and
``obfuscation_engines`` (if there is one). Prints and writes the record ``obfuscation``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from changed_bases import load
from cutlayer.audit.keycut.quality import Quality, perplexity, perplexity_increase, quality, relative_task_loss
from cutlayer.errors import InputError
from cutlayer.models.locate import locate
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure, new_record, proportion, read_record
from cutlayer.text.tokenizer import Tokenizer
from obfuscated import plain_texts, task_items
from report import PROMPTS, RECORDS, command, finish, prompt_texts

app = App(help=__doc__)

PRESET = "noisy_0_02_0_01"
"""The preset of models of this size; the record's task loss is that of this setting."""
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"mode": "exact"},
    PRESET: {"mode": "noisy", "alpha_e": 0.02, "alpha_h": 0.01},
    "noisy_0_05_0_02": {"mode": "noisy", "alpha_e": 0.05, "alpha_h": 0.02},
    "noisy_0_1_0_05": {"mode": "noisy", "alpha_e": 0.1, "alpha_h": 0.05},
    "noisy_0_25_0_1": {"mode": "noisy", "alpha_e": 0.25, "alpha_h": 0.1},
    "noisy_1_0_2": {"mode": "noisy", "alpha_e": 1.0, "alpha_h": 0.2},
    "paper_0_0": {"mode": "paper", "alpha_e": 0.0, "alpha_h": 0.0},
    "paper_0_02_0_01": {"mode": "paper", "alpha_e": 0.02, "alpha_h": 0.01},
    "paper_1_0_2": {"mode": "paper"},
    "paper_per_writer_0_0": {"mode": "paper", "alpha_e": 0.0, "alpha_h": 0.0, "per_writer_keys": True},
}


@app.default
def obfuscation(
    *,
    model: str = "smollm2-135m",
    documents: int = 16,
    items: int = 60,
    prompts: int = 20,
    new_tokens: int = 64,
    settings: tuple[str, ...] = tuple(SETTINGS),
    attacks: Path = RECORDS / "obfuscation_attacks.json",
    engines: Path = RECORDS / "obfuscation_engines.json",
    measured: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    documents
        Of 64 tokens, on which perplexity is measured.
    items
        Of the completion task.
    prompts
        Answered greedily by the plain model and by an export without noise.
    new_tokens
        Of each answer.
    settings
        Measured.
    attacks
        Record from which the strongest attack's share of tokens is taken.
    engines
        Record from which the speed on an unmodified engine is taken, if it is there.
    measured
        Measure nothing: compute the figures anew from the samples of the committed record and from the other two.
    write
        Whether to write the record.
    """
    if PRESET not in settings or "exact" not in settings:
        raise InputError(f"the record needs the settings exact and {PRESET}")
    worst_name, worst = strongest(attacks)
    engine, speed = slowest(engines) if engines.exists() else (None, None)
    if measured:
        held = read_record(RECORDS / "obfuscation.json")
        samples, settings, repeat = dict(held.samples), tuple(held.config["settings"]), held.command
    else:
        repeat = command("obfuscation")
        samples = _measure(model, documents, items, prompts, new_tokens, settings)
    figures = _figures(samples, settings, new_tokens)
    figures["tokens_recovered_worst"] = worst
    if speed is not None:
        figures["speed_over_plain"] = speed
    record = new_record(
        "obfuscation",
        repeat,
        {
            "model": model,
            "text": f"{documents} encyclopedia leads of the held-out part, first 64 tokens",
            "task": f"{items} factual completions of our own, four choices, no example",
            "prompts": f"{PROMPTS}, {new_tokens} new tokens each, stop ids suppressed, float32, cached decoding",
            "settings": {name: SETTINGS[name] for name in settings},
            "relative_task_loss": f"of {PRESET}, the preset at this size",
            "tokens_recovered_worst": f"{worst_name}, of record {attacks.stem}",
            "speed_over_plain": f"{engine}, of record {engines.stem}" if engine else "not measured yet",
            "published": "arXiv 2603.01499 states a loss of 0 to 3.5 % for a model of 671 billion parameters at (1.0, 0.2), and "
            "in its table up to 7.4 points for smaller ones; the smallest has 8 billion, at (0.5, 0.2); this one 0.135.",
        },
        figures,
        samples,
    )
    finish(record, write=write)


def _measure(
    model: str, documents: int, items: int, prompts: int, new_tokens: int, settings: Sequence[str]
) -> dict[str, list[Any]]:
    """Nats per document and right answers of the plain model and of each setting; see `quality`."""
    base = locate(model)
    tokenizer = Tokenizer(base)
    texts, asked = plain_texts(tokenizer.encode, documents), task_items(tokenizer.encode, items)
    plain_model = load(base)
    plain = quality(plain_model, texts, asked)
    samples: dict[str, list[Any]] = {"plain_nats": plain.nats, "plain_right": plain.right, "tokens": plain.tokens}
    with tempfile.TemporaryDirectory() as scratch:
        for name in settings:
            key = create_owner_key(base, choose(base, **SETTINGS[name]))
            tau = torch.from_numpy(key.tau().astype("int64"))
            export(base, Path(scratch) / name, key)
            made = load(Path(scratch) / name)
            found = quality(made, texts, asked, tau)
            samples |= {f"{name}_nats": found.nats, f"{name}_right": found.right}
            sys.stderr.write(f"{name}: {perplexity_increase(found, plain)} {relative_task_loss(found, plain)}\n")
            if name == "exact":
                same = _identical(plain_model, made, tau, tokenizer, prompt_texts(prompts), new_tokens)
                samples["greedy_tokens_before_a_difference"] = same
                sys.stderr.write(f"identical: {same}\n")
    return samples


def _figures(samples: dict[str, list[Any]], settings: Sequence[str], new_tokens: int) -> dict[str, Figure]:
    def found(name: str) -> Quality:
        return Quality(samples[f"{name}_nats"], samples["tokens"], samples[f"{name}_right"])

    plain = found("plain")
    same = samples["greedy_tokens_before_a_difference"]
    figures = {
        "plain_perplexity": perplexity(plain),
        "plain_task_accuracy": proportion(sum(plain.right), len(plain.right)),
        "greedy_identical_without_noise": proportion(sum(count == new_tokens for count in same), len(same)),
        "relative_task_loss": relative_task_loss(found(PRESET), plain),
    }
    for name in settings:
        figures[f"{name}_perplexity_increase"] = perplexity_increase(found(name), plain)
        figures[f"{name}_task_loss"] = relative_task_loss(found(name), plain)
    return figures


def strongest(attacks: Path) -> tuple[str, Figure]:
    """The attack on weights, in any mode, that reads the largest share of the tokens sent, and that share. Of equals, one at the
    paper's noise, and cancellation before others.

    Raises:
        InputError: the record was not measured yet.
    """
    if not attacks.exists():
        raise InputError(f"{attacks} is missing; run `cutlayer bench obfuscation_attacks` first")
    shares = {
        name.removesuffix("_occurrences"): figure
        for name, figure in read_record(attacks).figures.items()
        if name.endswith("_occurrences") and name.startswith(("exact_", "noisy_", "paper_"))
    }
    worst = max(shares, key=lambda name: (shares[name].value, name.startswith("paper_"), name == "paper_clx"))
    return worst, shares[worst]


def slowest(engines: Path) -> tuple[str, Figure]:
    """The unmodified engine on which an export loses most, and its speed over that of the plain model.

    Raises:
        InputError: the record holds no such figure.
    """
    ending = "_obfuscated_speed_over_plain"
    ratios = {name.removesuffix(ending): f for name, f in read_record(engines).figures.items() if name.endswith(ending)}
    if not ratios:
        raise InputError(
            f"{engines} holds no figure that ends in {ending}; measure it again, or give another --engines"
        )
    engine = min(ratios, key=lambda name: ratios[name].value)
    return engine, ratios[engine]


@torch.inference_mode()
def _identical(
    plain: Any, made: Any, tau: torch.Tensor, tokenizer: Tokenizer, prompts: list[str], count: int
) -> list[int]:
    """For each prompt, how many greedy tokens are the same before the first that differs."""
    length = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
    same = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)])
        ours = plain.generate(ids, attention_mask=torch.ones_like(ids), **length)[0, ids.shape[1] :]
        theirs = made.generate(tau[ids], attention_mask=torch.ones_like(ids), **length)[0, ids.shape[1] :]
        equal = (tau[ours] == theirs).tolist()
        same.append(equal.index(False) if False in equal else len(equal))
    return same


if __name__ == "__main__":
    app()
