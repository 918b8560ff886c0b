"""Inverters learned from pairs, undefended: what more data does to the claim that depth protects.

* Cunningham's attacker, replicated: about 880 pairs from a few texts, tokens of the same texts as test; with the ceiling that
  the types seen in training put on any classifier; then the same attacker with more pairs, and regressing the embedding.
* Ridge regression, position-wise and recurrent inverters with all pairs, RevertLM's two stages, nearest embedding.

Prints and writes the record ``inverters``.
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
from cutlayer.records.record import Figure, Record, median, new_record, proportion, write_record
from report import RECORDS, finish

app = App(help=__doc__)

PUBLISHED = {2: (0.588, 0.620), 4: (0.443, 0.498), 6: (0.448, 0.566), 8: (0.348, 0.462)}
"""Cunningham 2026, layers of the client → top-1 and top-5 on Mistral-7B-Instruct."""
REPLICA_PAIRS = 1101
"""In all; four fifths are trained on."""


@runtime_checkable
class Ranks(Protocol):
    """Attacks that name several tokens per position."""

    def ranked(self, observation: Observation, count: int) -> torch.Tensor: ...


@app.default
def inverters(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (2, 8, 4, 6),
    learned_depths: tuple[int, ...] = (2, 8),
    mlp_depths: tuple[int, ...] = (),
    revertlm_depths: tuple[int, ...] = (),
    second_stage_depths: tuple[int, ...] = (),
    prompts: int = 102,
    seeds: int = 3,
    pairs: int = 200_000,
    scaled: tuple[int, ...] = (20_000,),
    scaled_epochs: tuple[int, ...] = (3,),
    scaled_depths: tuple[int, ...] = (2,),
    gru_steps: int = 400,
    embedding: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    depths
        Layers of the client, for the replica.
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
    embedding
        Whether the replica is also trained to regress embeddings.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}

    def _record() -> Record:
        config = {
            **study.config(), "depths": depths, "learned_depths": learned_depths, "mlp_depths": mlp_depths,
            "revertlm_depths": revertlm_depths,
            "second_stage_depths": second_stage_depths, "scaled": scaled, "scaled_epochs": scaled_epochs,
            "scaled_depths": scaled_depths, "gru_steps": gru_steps,
            "published_cunningham_top1_top5": {str(k): v for k, v in PUBLISHED.items()}, "replica_texts": _texts.__doc__,
        }  # fmt: skip
        return new_record("inverters", "cutlayer bench inverters", config, figures, samples)

    def keep() -> None:
        # After every part: a run takes most of an hour.
        if write:
            write_record(_record(), RECORDS)

    def add(label: str, spec: str, depth: int, auxiliary: Auxiliary) -> None:
        scene = study.scene(depth)
        reader = prepare(build_attack(spec), scene.threat(auxiliary, study.prior))
        observed = [(victim, study.observe(scene, victim)) for victim in study.victims]
        found, raw = study.figures(f"k{depth}_{label}", study.read(reader, observed, label))
        figures.update(found)
        samples.update(raw)
        sys.stderr.write(f"k{depth} {label}: {found[f'k{depth}_{label}_token_accuracy'].value:.4f}\n")

    for depth in sorted({*learned_depths, *revertlm_depths, *scaled_depths}):
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
            add("revertlm_2", "revertlm:stage=2,sequences=120", depth, auxiliary)
        if depth in scaled_depths:
            for count, epochs in zip(scaled, scaled_epochs, strict=True):
                few = -(-count // study.ids.shape[1])
                own = Auxiliary(auxiliary.ids[:few], auxiliary.released[:few])
                add(f"cunningham_{count}", f"cunningham:epochs={epochs}", depth, own)
                covered = torch.isin(_truth(study), torch.unique(own.ids)).float().tolist()
                figures[f"k{depth}_cunningham_{count}_type_coverage"] = proportion(int(sum(covered)), len(covered))
        study.states.cache_clear()
        keep()
    for depth in depths:
        _replica(study, depth, embedding, figures, samples)
        keep()
    finish(_record(), write=False)


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
        label = f"k{depth}_replica_{target}"
        for name, values in (("top1", top1), ("top5", top5), ("type_coverage", coverage), ("top1_of_seen", seen_top1)):
            figures[f"{label}_{name}"] = median(values, "fraction")
            samples[f"{label}_{name}"] = values
        sys.stderr.write(f"{label}: {top1} of {coverage}\n")


def _texts(study: Study) -> Sequence[list[int]]:
    """Our own medical, legal, finance and private questions in file order, up to 1,101 tokens, for the paper's 16 texts."""
    return [study.tokenizer.encode(prompt.text) for prompt in questions()[:60]]


def _truth(study: Study) -> torch.Tensor:
    return torch.tensor([token for victim in study.victims for token in victim.item.ids])


if __name__ == "__main__":
    app()
