"""Vocabulary matching on hidden states whose coordinates, or coordinates and positions, leave in a secret order.

Prints and writes the record ``permuted``.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple

from cyclopts import App

from attacked import Study
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, exact, new_record, write_record
from report import RECORDS, command, finish

app = App(help=__doc__)


class Part(NamedTuple):
    """What is attacked, and how."""

    defence: str
    attack: str


PARTS: Final = {
    "both": Part("permute:axis=both", "vma"),
    "columns": Part("permute:axis=columns", "vma"),
    "plain": Part("none", "vma"),
    "columns_search": Part("permute:axis=columns", "search"),
}
PUBLISHED: Final = {
    "source": "arXiv 2505.18332, exact decodes of 1,000 samples, read second-hand",
    "plain": {"Gemma-2-2B": [1, 1, 1, 1], "Llama-3.1-8B": [1, 1, 0.999, 0.997]},
    "both": {"Gemma-2-2B": [0.999, 0.995, 0.991, 0.99], "Llama-3.1-8B": [0.984, 0.989, 0.98, 0.976]},
}


@app.default
def permuted(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (1, 4, 8),
    parts: tuple[str, ...] = tuple(PARTS),
    prompts: int = 102,
    most: int = 102,
    few: int = 12,
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
    parts
        Of both, columns, plain and columns_search.
    prompts
        How many there are, divided among the seeds.
    most
        How many of them are attacked at one layer with both orders secret.
    few
        How many of them otherwise.
    seeds
        How many.
    pairs
        Tokens of the attacker's text, which only ranks candidates of the search.
    resume
        Go on from the committed record: parts it has of as many prompts are not measured again.
    write
        Whether to write the record.
    """
    if not depths or not parts or not set(parts) <= set(PARTS):
        raise InputError(f"give at least one depth and one part; parts are {', '.join(PARTS)}, not {', '.join(parts)}")
    study = Study(model, prompts, seeds, pairs)
    earlier = study.recorded("permuted") if resume else None
    figures: dict[str, Figure] = dict(earlier.figures) if earlier else {}
    samples: dict[str, list[Any]] = dict(earlier.samples) if earlier else {}
    counts: dict[str, int] = dict(earlier.config["counts"]) if earlier else {}
    for part in parts:
        for depth in depths:
            label, (defence, attack) = f"k{depth}_{part}", PARTS[part]
            victims = study.spread(most if label == "k1_both" else few)
            if counts.get(label) == len(victims):
                continue
            scene = study.scene(depth).under(defence)
            owned = study.auxiliary(scene, depth) if attack == "search" else None
            readings = study.attack(attack, scene.threat(owned, study.prior), scene, label, victims)
            found, raw = study.figures(label, readings)
            tokens = sum(len(reading.victim.item.ids) for reading in readings)
            tried = sum(reading.guess.effort["candidates"] for reading in readings)
            found[f"{label}_candidates_per_token"] = exact(tried / tokens, "candidates", tokens)
            sys.stderr.write(f"{label}: {found[f'{label}_exact_match'].value:.4f}\n")
            figures, samples, counts = figures | found, samples | raw, counts | {label: len(victims)}
            record = new_record("permuted", command("permuted"), _config(study, counts), figures, samples)
            if write:  # after every part: they take long
                write_record(record, RECORDS)
    finish(new_record("permuted", command("permuted"), _config(study, counts), figures, samples), write=write)


def _config(study: Study, counts: dict[str, int]) -> dict[str, Any]:
    parts = {name: part._asdict() for name, part in PARTS.items()}
    return {**study.config(), "parts": parts, "counts": counts, "published": PUBLISHED}


if __name__ == "__main__":
    app()
