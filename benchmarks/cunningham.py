"""Cunningham's experiment, replicated: how much of the fall with depth is a want of data.

The attacker of arXiv 2602.16760: a position-wise classifier on about 880 pairs of hidden state and token from a few texts, tested
on other tokens of the same texts. Beside its score stands the ceiling of any such classifier: the share of test tokens whose
type was among those trained on. The same pairs are also used to regress embeddings, which has no such ceiling.

Prints and writes the record ``cunningham``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from cyclopts import App

from attacked import Study
from cutlayer.attacks.attack import Auxiliary, Observation, build_attack, prepare
from cutlayer.corpora.questions import questions
from cutlayer.records.record import Figure, median, new_record, write_record
from report import RECORDS, command

app = App(help=__doc__)

PUBLISHED = {2: (0.588, 0.620), 4: (0.443, 0.498), 6: (0.448, 0.566), 8: (0.348, 0.462)}
"""Cunningham 2026, layers of the client → top-1 and top-5 on Mistral-7B-Instruct."""
REPLICA_PAIRS = 1101
"""In all; four fifths are trained on."""
TEXTS = "own questions in file order up to so many pairs, which are all medical; the paper has 16 texts of its own"


@runtime_checkable
class Ranks(Protocol):
    """Attacks that name several tokens per position."""

    def ranked(self, observation: Observation, count: int) -> torch.Tensor: ...


@app.default
def cunningham(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (2, 8, 4, 6),
    seeds: int = 3,
    embedding: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    depths
        Layers of the client.
    seeds
        Random splits.
    embedding
        Whether to regress embeddings as well.
    write
        Whether to write the record.
    """
    study = Study(model, seeds, seeds, 64)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    for depth in depths:
        _replica(study, depth, embedding, figures, samples)
        config = {
            "model": model, "depths": depths, "seeds": list(study.seeds), "pairs": REPLICA_PAIRS, "texts": TEXTS,
            "published_top1_top5": {str(k): v for k, v in PUBLISHED.items()},
        }  # fmt: skip
        if write:
            write_record(new_record("cunningham", command("cunningham"), config, figures, dict(samples)), RECORDS)


def _replica(
    study: Study, depth: int, embedding: bool, figures: dict[str, Figure], samples: dict[str, list[Any]]
) -> None:
    """Train on four fifths of the tokens of a few texts, test on the rest of the same texts, for every seed."""
    scene = study.scene(depth)
    ids, rows = [], []
    for text in _texts(study):
        ids.append(torch.tensor(text))
        rows.append(scene.hidden(ids[-1][None])[0])
    all_ids, all_rows = torch.cat(ids)[:REPLICA_PAIRS], torch.cat(rows)[:REPLICA_PAIRS]
    for target in ("token", "embedding") if embedding else ("token",):
        top1, top5, coverage, seen_top1 = [], [], [], []
        for seed in study.seeds:
            order = torch.randperm(len(all_ids), generator=torch.Generator().manual_seed(seed))
            cut = round(0.8 * len(order))
            train, test = order[:cut], order[cut:]
            threat = scene.threat(Auxiliary(all_ids[train][:, None], all_rows[train][:, None]), seed=seed)
            reader = prepare(build_attack(f"cunningham:target={target}"), threat)
            assert isinstance(reader, Ranks)
            ranked = reader.ranked(Observation(all_rows[test][None]), 5)  # [T, 5]
            hit = ranked == all_ids[test][:, None]
            known = torch.isin(all_ids[test], torch.unique(all_ids[train]))
            top1.append(float(hit[:, 0].float().mean()))
            top5.append(float(hit.any(-1).float().mean()))
            coverage.append(float(known.float().mean()))
            seen_top1.append(float(hit[known, 0].float().mean()))
        label = f"k{depth}_{target}"
        for name, values in (("top1", top1), ("top5", top5), ("type_coverage", coverage), ("top1_of_seen", seen_top1)):
            figures[f"{label}_{name}"] = median(values, "fraction")
            samples[f"{label}_{name}"] = values
        sys.stderr.write(f"{label}: {top1} of {coverage}\n")


def _texts(study: Study) -> Sequence[list[int]]:
    return [study.tokenizer.encode(prompt.text) for prompt in questions()]


if __name__ == "__main__":
    app()
