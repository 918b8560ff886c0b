"""ActInv: embeddings whose hidden states match, then tokens; with and without calibration, undefended and defended.

Prints and writes the record ``matching``.
"""

from __future__ import annotations

import sys
from typing import Any

from cyclopts import App

from attacked import Study
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, new_record, write_record
from report import RECORDS, command, finish

app = App(help=__doc__)

PUBLISHED = "99.65 % mean token precision and recall on 100 AlpacaEval prompts (ActInv, secondary source; other models)"


@app.default
def matching(
    *,
    model: str = "smollm2-135m",
    settings: tuple[str, ...] = ("1 none", "2 none", "4 none", "8 none", "4 gaussian:relative=0.05", "4 topk:keep=0.5"),
    attacks: tuple[str, ...] = ("actinv:calibrate=false", "actinv"),
    prompts: int = 102,
    seeds: int = 3,
    pairs: int = 30_000,
    resume: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    settings
        Each is the number of the client's layers, a blank and a defence.
    attacks
        Specifications.
    prompts
        How many, divided among the seeds.
    seeds
        How many.
    pairs
        Tokens of the attacker's text, for the starting point.
    resume
        Keep what the committed record has of the same prompts and text.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    record = study.recorded("matching") if resume else None
    if record is not None:
        figures |= record.figures
        samples |= record.samples
    for setting in settings:
        depth, _, defence = setting.partition(" ")
        scene = study.scene(int(depth)).under(defence)
        threat = scene.threat(study.auxiliary(scene, int(depth)), study.prior)
        for spec in attacks:
            label = f"k{depth}_{defence.partition(':')[0]}_{spec.replace(':', '_').replace('=', '_')}"
            if f"{label}_token_accuracy" in figures:
                continue
            found, raw = study.figures(label, study.attack(spec, threat, scene, label))
            figures |= found
            samples |= raw
            sys.stderr.write(f"{label}: {found[f'{label}_token_accuracy'].value:.4f}\n")
            config = {**study.config(), "settings": settings, "attacks": attacks, "published": PUBLISHED}
            record = new_record("matching", command("matching"), config, figures, dict(samples))
            if write:  # after every part: all of them take hours
                write_record(record, RECORDS)
    if record is None:
        raise InputError("nothing to measure: give at least one setting and one attack")
    finish(record, write=False)


if __name__ == "__main__":
    app()
