"""Which reading of PAF predicts which attack: rank correlation over depths of each reading with each attack's success.

Reads the committed record ``paf``, attacks at the depths named, and writes the record ``predict``. Attacks run without
text where they can, at every depth alike; candidate search reads everything at every depth, so nothing can correlate with it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from cyclopts import App

from attacked import Study
from cutlayer.attacks.attack import Auxiliary
from cutlayer.audit.depths import layer_outputs
from cutlayer.audit.metrics.rank import spearman
from cutlayer.audit.paf import STEPS
from cutlayer.records.record import Figure, new_record, read_record
from report import RECORDS, command, finish

app = App(help=__doc__)

READINGS = (
    *("paf_rms", "paf_max", "paf_lam", "paf_bp"),
    *(f"paf_k{steps}" for steps in STEPS),
    *("rpaf_rms", "rpaf_lam"),
)
ATTACKS = {"nearest": "nearest", "ridge": "ridge", "actinv_0": "actinv:calibrate=false,init=mean,steps=40"}
BATCH = 32


@app.default
def predict(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (1, 2, 4, 6, 8, 15, 22, 29),
    matched_depths: tuple[int, ...] = (1, 2, 4, 6, 8, 15),
    prompts: int = 48,
    matched_prompts: int = 6,
    seeds: int = 3,
    pairs: int = 20_000,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    depths
        Layers of the client.
    matched_depths
        Those at which embeddings are matched, which is dear.
    prompts
        How many, divided among the seeds.
    matched_prompts
        The same for matching.
    seeds
        How many.
    pairs
        Tokens of the attacker's text.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    amplification = read_record(RECORDS / "paf.json").figures
    deepest = study.scene(max(depths)).head
    states: dict[int, list[torch.Tensor]] = {depth: [] for depth in depths}
    for batch in torch.split(study.ids, BATCH):
        with layer_outputs(deepest) as outputs, torch.inference_mode():
            deepest(batch, deepest.new_cache())
        for depth in depths:
            states[depth].append(outputs[depth - 1])
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    success: dict[str, dict[int, float]] = {name: {} for name in ATTACKS}
    for depth in depths:
        scene = study.scene(depth)
        threat = scene.threat(Auxiliary(study.ids, torch.cat(states[depth])))
        for name, spec in ATTACKS.items():
            if name == "actinv_0" and depth not in matched_depths:
                continue
            victims = study.victims[:matched_prompts] if name == "actinv_0" else study.victims
            label = f"k{depth}_{name}"
            found, raw = study.figures(label, study.attack(spec, threat, scene, label, victims))
            figures |= {key: value for key, value in found.items() if key.endswith("token_accuracy")}
            samples |= raw
            success[name][depth] = found[f"{label}_token_accuracy"].value
            sys.stderr.write(f"{label}: {success[name][depth]:.4f}\n")
    for name, reached in success.items():
        for reading in READINGS:
            values = [amplification[f"{reading}_depth_{depth}_median"].value for depth in reached]
            correlation = spearman(values, list(reached.values()))
            if isinstance(correlation, Figure):
                figures[f"{reading}_with_{name}"] = correlation
    config = {
        **study.config(), "depths": depths, "matched_depths": matched_depths, "matched_prompts": matched_prompts,
        "attacks": ATTACKS, "readings": READINGS, "search": "reads everything at every depth (record search)",
    }  # fmt: skip
    finish(new_record("predict", command("predict"), config, figures, samples), write=write)


if __name__ == "__main__":
    app()
