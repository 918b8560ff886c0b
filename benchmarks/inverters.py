"""Inverters learned from pairs, undefended: what more data does to the claim that depth protects.

* Cunningham's classifier with more pairs than its author had, and the ceiling that the types trained on put on it.
* Ridge regression, position-wise and recurrent inverters with all pairs, RevertLM's two stages, nearest embedding.

Prints and writes the record ``inverters``.
"""

from __future__ import annotations

import sys
from statistics import fmean
from typing import Any

import torch
from cyclopts import App

from attacked import Study
from cutlayer.attacks.attack import Auxiliary
from cutlayer.records.record import Figure, Record, exact, new_record, proportion, write_record
from report import RECORDS, command, finish

app = App(help=__doc__)

SCORED = ("token_accuracy", "token_set_f1", "rouge_l", "bleu_4", "exact_match")


@app.default
def inverters(
    *,
    model: str = "smollm2-135m",
    learned_depths: tuple[int, ...] = (2, 8),
    mlp_depths: tuple[int, ...] = (2, 8),
    revertlm_depths: tuple[int, ...] = (2, 4, 8, 15),
    second_stage_depths: tuple[int, ...] = (2, 15),
    prompts: int = 102,
    seeds: int = 3,
    pairs: int = 200_000,
    scaled: tuple[int, ...] = (20_000,),
    scaled_epochs: tuple[int, ...] = (3,),
    scaled_depths: tuple[int, ...] = (2,),
    gru_steps: int = 400,
    resume: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    learned_depths
        For the cheap attacks and the recurrent inverter.
    mlp_depths
        For the position-wise inverter.
    revertlm_depths
        For RevertLM's first stage.
    second_stage_depths
        For both its stages.
    prompts
        How many, divided among the seeds.
    seeds
        How many.
    pairs
        Tokens of the attacker's text.
    scaled
        Pairs given to the replica's attacker.
    scaled_epochs
        Passes over each; fifty passes over 200,000 pairs would take hours here (``mlp`` is that family with so many pairs).
    scaled_depths
        Layers of the client for them.
    gru_steps
        Training steps of the recurrent inverter.
    resume
        Keep what the committed record has of the same prompts and text.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    runs = [command("inverters")]
    earlier = study.recorded("inverters") if resume else None
    if earlier is not None:
        figures.update(earlier.figures)
        samples.update(earlier.samples)
        runs = [*earlier.config.get("runs", [earlier.command]), *runs]

    def record() -> Record:
        config = {
            **study.config(), "runs": runs, "learned_depths": learned_depths, "mlp_depths": mlp_depths,
            "revertlm_depths": revertlm_depths,
            "second_stage_depths": second_stage_depths, "scaled": scaled, "scaled_epochs": scaled_epochs,
            "scaled_depths": scaled_depths, "gru_steps": gru_steps, "attack_score": f"mean of {', '.join(SCORED)}",
        }  # fmt: skip
        labels = [name.removesuffix("_token_set_f1") for name in figures if name.endswith("_token_set_f1")]
        scores = {f"{label}_attack_score": _attack_score(label, figures) for label in labels}
        return new_record("inverters", command("inverters"), config, figures | scores, samples)

    def keep() -> None:
        # After every attack: a run takes most of an hour.
        if write:
            write_record(record(), RECORDS)

    def add(label: str, spec: str, depth: int, auxiliary: Auxiliary) -> None:
        if f"k{depth}_{label}_token_accuracy" in figures:
            return
        scene = study.scene(depth)
        readings = study.attack(spec, scene.threat(auxiliary, study.prior), scene, label)
        found, raw = study.figures(f"k{depth}_{label}", readings)
        figures.update(found)
        samples.update(raw)
        sys.stderr.write(f"k{depth} {label}: {found[f'k{depth}_{label}_token_accuracy'].value:.4f}\n")
        keep()

    for depth in sorted({*learned_depths, *mlp_depths, *revertlm_depths, *second_stage_depths, *scaled_depths}):
        auxiliary = Auxiliary(study.ids, study.states(depth))
        add("nearest", "nearest", depth, auxiliary)
        add("ridge", "ridge", depth, auxiliary)
        add("ridge_unweighted", "ridge:balance=0", depth, auxiliary)
        if depth in learned_depths:
            add("gru", f"gru:steps={gru_steps}", depth, auxiliary)
        if depth in mlp_depths:
            add("mlp", "mlp", depth, auxiliary)
        if depth in revertlm_depths:
            add("revertlm_1", "revertlm:stage=1", depth, auxiliary)
        if depth in second_stage_depths:
            add("revertlm_2", "revertlm:stage=2", depth, auxiliary)
        if depth in scaled_depths:
            for count, epochs in zip(scaled, scaled_epochs, strict=True):
                few = -(-count // study.ids.shape[1])
                own = Auxiliary(auxiliary.ids[:few], auxiliary.released[:few])
                add(f"cunningham_{count}", f"cunningham:epochs={epochs}", depth, own)
                covered = torch.isin(_truth(study), torch.unique(own.ids)).float().tolist()
                figures[f"k{depth}_cunningham_{count}_type_coverage"] = proportion(int(sum(covered)), len(covered))
        study.states.cache_clear()
        keep()
    finish(record(), write=False)


def _attack_score(label: str, found: dict[str, Figure]) -> Figure:
    """Mean of five metrics, to stand beside RevertLM's published band: how that paper scores an attack is not known."""
    parts = [found[f"{label}_{metric}"] for metric in SCORED]
    return exact(fmean(part.value for part in parts), "fraction", parts[0].n)


def _truth(study: Study) -> torch.Tensor:
    return torch.tensor([token for victim in study.victims for token in victim.item.ids])


if __name__ == "__main__":
    app()
