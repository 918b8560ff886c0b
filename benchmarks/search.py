"""Candidate search on undefended hidden states, at several depths, over a lossless and a bfloat16 wire.

Prints and writes the record ``search``.
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


@app.default
def search(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (1, 4, 8, 15, 29),
    codecs: tuple[str, ...] = ("fp32", "bf16"),
    prompts: int = 102,
    few: int = 24,
    deep: int = 8,
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
    depths
        Layers of the client.
    codecs
        How hidden states travel.
    prompts
        How many, divided among the seeds.
    few
        How many of them over a wire that rounds, and at the depths beyond `deep`.
    deep
        Depth up to which all prompts are attacked.
    seeds
        How many.
    pairs
        Tokens of the attacker's text, which only ranks candidates.
    resume
        Keep what the committed record has of other depths.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    measured: list[dict[str, Any]] = []
    kept: list[int] = []
    earlier = study.recorded("search") if resume else None
    if earlier is not None:
        figures, samples = dict(earlier.figures), dict(earlier.samples)
        measured = [one for one in earlier.config["measured"] if one["cut_start"] not in depths]
        kept = [depth for depth in earlier.config["depths"] if depth not in depths]
    record = None
    for depth in depths:
        for codec in codecs:
            scene = study.scene(depth).under("none", codec)
            threat = scene.threat(study.auxiliary(study.scene(depth), depth), study.prior)
            victims = study.victims if codec == "fp32" and depth <= deep else study.spread(few)
            label = f"k{depth}_{codec}"
            found, raw = study.figures(label, study.attack("search", threat, scene, label, victims))
            sys.stderr.write(f"{label}: {found[f'{label}_token_accuracy'].value:.4f}\n")
            figures |= found
            samples |= raw
            if codec == "fp32":
                measured.append(study.measured(depth, "none", "search", found[f"{label}_token_accuracy"], "search"))
            config = {
                **study.config(), "few": few, "deep": deep, "depths": [*kept, *depths], "codecs": codecs, "attack": "search",
                "measured": measured,
            }  # fmt: skip
            record = new_record("search", command("search"), config, figures, dict(samples))
            if write:  # after every part: deep ones take long
                write_record(record, RECORDS)
    if record is None:
        raise InputError("nothing to measure: give at least one depth and one codec")
    finish(record, write=False)


if __name__ == "__main__":
    app()
