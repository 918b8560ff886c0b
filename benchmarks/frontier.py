"""Leakage against utility: every defence × strength × depth, by the strongest of several adapted attacks.

Leakage is the advantage of the best attack over a language model that sees nothing; utility is the relative increase of
perplexity on text no prompt is from. An attack that already reads nearly everything ends the attack on that setting: the
maximum cannot rise much further. Decoding with a prior and retrained inverters are costly and run where they can decide.

Prints and writes the record ``frontier`` and draws docs/figures/frontier.svg from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from cyclopts import App

from attacked import Study
from cutlayer.audit.scene import Scene
from cutlayer.audit.utility import Item, Utility
from cutlayer.corpora.tasks import completions, few_shot
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, Record, exact, new_record, proportion, read_record, write_record
from report import RECORDS, ROOT, command, finish

app = App(help=__doc__)

ENOUGH = 0.99
"""Token accuracy at which no further attack is run on a setting."""
USABLE = 1.0
"""Perplexity increase beyond which the costly attacks are left out: such a model is of no use to anybody."""
BAR_PERPLEXITY = 0.05
BAR_ADVANTAGE = 0.25


class Setting(NamedTuple):
    """A defence, and how many sessions of the same prompt the server saw."""

    label: str
    spec: str
    repeats: int = 1


SETTINGS = (
    Setting("none", "none"),
    *(Setting(f"gaussian_{r}", f"gaussian:relative={r}") for r in (0.05, 0.2, 0.4, 0.8)),
    Setting("gaussian_0.8_16_sessions", "gaussian:relative=0.8", 16),
    Setting("laplace_0.4", "laplace:relative=0.4"),
    Setting("dchi_0.4", "dchi:relative=0.4"),
    Setting("topk_0.1", "topk:keep=0.1"),
    Setting("dropout_0.5", "dropout:p=0.5"),
    *(Setting(f"int{b}", f"quantise:bits={b}") for b in (4, 2)),
    Setting("clip_0.5", "clip:relative=0.5"),
    Setting("lowrank_32", "lowrank:rank=32,basis=principal"),
    Setting("pripert_0.4", "pripert:reading=static,beta=0.4"),
)
CHEAP = ("search:width=96", "actinv:steps=50", "ridge")
"""Attacks in order of cost."""
COSTLY = ("map-beam:beams=4,proposals=64", "gru:steps=200")
"""Then these, where the model is of use to anybody."""
FULL = 2
"""Depth at which all settings are measured."""
DEEP = ("none", "gaussian_0.2", "gaussian_0.4", "int2", "pripert_0.4")
"""Settings measured at others, where everything costs more."""


@app.default
def frontier(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (2, 8, 15),
    settings: tuple[str, ...] = (),
    prompts: int = 24,
    seeds: int = 3,
    pairs: int = 30_000,
    text: int = 24,
    items: int = 10,
    write: bool = True,
    resume: bool = False,
    redraw: bool = False,
) -> None:
    """Measure, record and draw.

    Parameters
    ----------
    model
        Name or directory.
    depths
        Layers of the client; all settings at 2, a choice at the others.
    settings
        Labels of settings; none is all.
    prompts
        How many, divided among the seeds.
    seeds
        How many.
    pairs
        Tokens of the attacker's text, through each defence.
    text
        Windows of 64 tokens on which perplexity is measured.
    items
        Completion items of the task.
    write
        Whether to write the record.
    resume
        Keep what the committed record has of the same prompts and text; settings there get the attacks they lack.
    redraw
        Only draw the committed record again.
    """
    if redraw:
        draw(read_record(RECORDS / "frontier.json"), ROOT / "docs" / "figures" / "frontier.svg")
        return
    study = Study(model, prompts, seeds, pairs + 64 * text)
    held, study.ids = study.ids[-text:], study.ids[:-text]
    encode = study.tokenizer.encode
    tasks = [
        Item(encode(few_shot(item)), [encode(f" {choice}") for choice in item.choices], item.answer)
        for item in completions()[:items]
    ]
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    record = study.recorded("frontier") if resume else None
    if record is not None:
        rows, samples = record.config["rows"], record.samples
        figures = {name: figure for name, figure in record.figures.items() if name.startswith("k")}
    for depth in depths:
        scene = study.scene(depth)
        utility = Utility(scene.directory, scene.cut)
        for setting in SETTINGS:
            if (settings and setting.label not in settings) or (depth != FULL and setting.label not in DEEP):
                continue
            under = scene.under(setting.spec)
            known = next((row for row in rows if row["label"] == f"k{depth}_{setting.label}"), None)
            row = known or _useful(under, depth, setting, utility, held, tasks, figures)
            if not _attacked(study, under, row, figures, samples):
                continue
            if known is None:
                rows.append(row)
            sys.stderr.write(msgspec.json.encode(row).decode() + "\n")
            # Kept after every setting: a run takes most of an hour, and what it has measured is worth having.
            record = _record(study, rows, figures, samples, held, tasks)
            if write:
                write_record(record, RECORDS)
    if record is None:
        raise InputError(
            f"none of {', '.join(settings)} is a setting; there are: {', '.join(s.label for s in SETTINGS)}"
        )
    finish(record, write=False)
    if write:
        draw(record, ROOT / "docs" / "figures" / "frontier.svg")


def _record(
    study: Study, rows: list[dict[str, Any]], figures: dict[str, Figure], samples: dict[str, list[Any]],
    held: torch.Tensor, tasks: list[Item],
) -> Record:  # fmt: skip
    """Everything so far."""
    usable = [row["advantage"] for row in rows if row["perplexity_increase"] <= BAR_PERPLEXITY]
    passed = [row["label"] for row in rows if _passes(row)]
    summary = {
        "settings_measured": exact(len(rows), "settings"),
        "settings_that_pass": exact(len(passed), "settings", len(rows)),
    }
    if usable:
        summary["best_advantage_at_5_percent_perplexity"] = exact(min(usable), "fraction", len(usable))
    config = {
        **study.config(), "settings": {s.label: s._asdict() for s in SETTINGS}, "deep": DEEP, "rows": rows,
        "passed": passed, "enough": ENOUGH, "usable": USABLE, "perplexity_tokens": held[:, 1:].numel(),
        "task": f"{len(tasks)} completion items of our own, four choices",
        "measured": [
            study.measured(row["depth"], row["defence"], row["strongest"], figures[f"{row['label']}_token_accuracy"], "frontier")
            for row in rows if row["repeats"] == 1
        ],
    }  # fmt: skip
    return new_record("frontier", command("frontier"), config, {**summary, **figures}, dict(samples))


def _passes(row: dict[str, Any]) -> bool:
    cheap = row["perplexity_increase"] <= BAR_PERPLEXITY
    return bool(cheap and row["advantage"] <= BAR_ADVANTAGE and row["content_advantage"] <= BAR_ADVANTAGE - 0.05)


def _useful(
    scene: Scene, depth: int, setting: Setting, utility: Utility, held: torch.Tensor, tasks: list[Item],
    figures: dict[str, Figure],
) -> dict[str, Any]:  # fmt: skip
    """A row with what the setting costs, not attacked yet."""
    label = f"k{depth}_{setting.label}"
    left = utility.measure(scene, held)
    right = utility.accuracy(scene, tasks)
    figures[f"{label}_perplexity_increase"] = exact(left.perplexity_increase, "relative", left.tokens)
    figures[f"{label}_kl"] = exact(left.kl, "nats", left.tokens)
    figures[f"{label}_agreement"] = proportion(round(left.agreement * left.tokens), left.tokens)
    figures[f"{label}_task_accuracy"] = proportion(sum(right), len(right))
    return {
        "label": label, "depth": depth, "setting": setting.label, "defence": setting.spec, "repeats": setting.repeats,
        "attacks": {}, "perplexity_increase": left.perplexity_increase,
    }  # fmt: skip


def _attacked(
    study: Study, scene: Scene, row: dict[str, Any], figures: dict[str, Figure], samples: dict[str, list[Any]],
) -> bool:  # fmt: skip
    """Give a row the attacks it has not had, until one has read enough; whether there were any."""
    label, repeats = row["label"], row["repeats"]
    accuracy = f"{label}_token_accuracy"
    usable = row["perplexity_increase"] <= USABLE
    threat = None
    for spec in (*CHEAP, *(COSTLY if usable else ())):
        if spec in row["attacks"] or (accuracy in figures and figures[accuracy].value >= ENOUGH):
            continue
        if threat is None:
            threat = scene.threat(study.auxiliary(scene, row["depth"], repeats), study.prior, repeats=repeats)
        readings = study.attack(spec, threat, scene, f"{label} {spec}", repeats=repeats)
        found = study.found(readings)
        row["attacks"][spec] = found["token_accuracy"].value
        samples[f"{label}_{spec}"] = [one.token_accuracy for one in study.scores(readings)]
        if accuracy not in figures or found["token_accuracy"].value > figures[accuracy].value:
            figures.update({f"{label}_{name}": figure for name, figure in found.items()})
            advantages = {name: found[name].value for name in ("advantage", "content_advantage")}
            row |= {"strongest": spec, **advantages}
    return threat is not None


def draw(record: Record, path: Path) -> None:
    """Leakage against perplexity increase, one panel per depth, with the bar a defence has to meet."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    rows = record.config["rows"]
    depths = sorted({row["depth"] for row in rows})
    chart, panels = pyplot.subplots(
        1, len(depths), figsize=(max(7.0, 4.2 * len(depths)), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    kinds = sorted({row["setting"].split("_")[0] for row in rows})
    colours = {kind: f"C{i}" if i < 10 else "black" for i, kind in enumerate(kinds)}
    for panel, depth in zip(panels[0], depths, strict=True):
        for row in rows:
            if row["depth"] != depth:
                continue
            kind = row["setting"].split("_")[0]
            panel.plot(
                max(row["perplexity_increase"], 1e-3),
                100 * max(row["advantage"], 0),
                "o",
                color=colours[kind],
                label=kind,
            )
        panel.add_patch(Rectangle((1e-4, 0), BAR_PERPLEXITY - 1e-4, 100 * BAR_ADVANTAGE, color="C2", alpha=0.15))
        panel.set(xscale="log", xlim=(7e-4, 1e5), ylim=(-3, 104), title=f"after {depth} layers")
        panel.set_xlabel("perplexity increase (1 = doubled)")
    panels[0][0].set_ylabel("advantage of the strongest attack, % of tokens")
    handles = {
        name: handle for panel in panels[0] for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    chart.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    app()
