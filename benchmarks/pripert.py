"""What PriPert costs and what a server still reads through it, beside Gaussian noise of the same length.

Every reading × β × depth is given to the attacks a claim about it has to survive: matching by gradients, with and without
calibration and stopped early; inverters retrained on defended pairs; candidate search that knows the law (for the fixed
subspace: projects it out) and search that does not. Nothing here is a figure of the paper, whose readings are derived.

The readings that run the layers again at every position cost up to seconds per token. They get fewer prompts, and their
inverters few defended pairs, filled up with pairs under Gaussian noise of the same length; search, which would simulate the
defence on tokens of its own, simulates that noise.

Prints and writes the record ``pripert``.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import torch
from cyclopts import App
from rich.progress import track

from cutlayer.attacks.attack import Auxiliary, Guess, Observation, Threat, build_attack, prepare
from cutlayer.attacks.prior import Prior
from cutlayer.audit.material import Item, attackers, victims
from cutlayer.audit.metrics.documents import over_documents
from cutlayer.audit.metrics.positional import token_accuracy
from cutlayer.audit.pripert_calibration import calibrate_directions
from cutlayer.audit.reading import read_all
from cutlayer.audit.scene import Scene, attacker_secret
from cutlayer.audit.utility import Utility
from cutlayer.audit.utility_figures import utility_outcome
from cutlayer.defences.defence import build_channel, build_defence
from cutlayer.defences.positions import History
from cutlayer.defences.pripert_directions import write_directions
from cutlayer.defences.scale import Scale, median_norm
from cutlayer.errors import InputError
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, Record, median, new_record, write_record
from cutlayer.registry import Spec
from cutlayer.text.tokenizer import Tokenizer
from report import RECORDS, command, finish, recorded

READINGS: Final = ("static", "offline", "power", "gradient", "backprop", "decoy")
ATTACKS: Final = ("actinv_0", "actinv", "actinv_K", "ridge", "mlp", "search", "search_blind", "simulate")
LEARNED: Final = frozenset(ATTACKS) - {"actinv_0", "simulate"}
"""Those that look at the attacker's own text."""
ONLINE: Final = frozenset({"power", "gradient", "backprop", "decoy"})

app = App(help=__doc__)


class Plan(NamedTuple):
    """What every setting is given."""

    items: list[Item]
    online_items: int
    auxiliary: torch.Tensor
    """[S, T] ids of the attacker's text."""
    online_sequences: int
    utility_items: int
    attacks: dict[str, str]
    """Name → specification."""
    online_width: int
    prior: Prior


class Row(NamedTuple):
    """One setting."""

    name: str
    defence: str
    online: bool
    beta: float
    gaussian: str
    """Noise of the same length."""


@runtime_checkable
class Sweep(Protocol):
    """Guesses after several numbers of steps."""

    def sweep(self, observation: Observation) -> dict[int, Guess]: ...


@app.default
def pripert(
    *,
    model: str = "smollm2-135m",
    depths: tuple[int, ...] = (4, 2),
    readings: tuple[str, ...] = READINGS,
    betas: tuple[float, ...] = (0.2, 0.8),
    attacks: tuple[str, ...] = ATTACKS,
    prompts: int = 50,
    online_prompts: int = 5,
    pairs: int = 60_000,
    online_pairs: int = 512,
    calibration: int = 4096,
    steps: int = 500,
    stops: tuple[int, ...] = (50, 100, 300, 1000),
    mlp_steps: int = 800,
    width: int = 1024,
    online_width: int = 4096,
    utility_prompts: int = 20,
    seed: int = 0,
    resume: bool = False,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    depths
        Layers of the client, with two more at the end.
    readings
        Some of static, offline (static with directions calibrated on the whole model), power, gradient, backprop, decoy.
    betas
        Length of the perturbation over that of the hidden state.
    attacks
        Some of actinv_0 (uncalibrated), actinv, actinv_K (stopped early), ridge, mlp, search, search_blind, simulate.
    prompts
        How many prompts are attacked.
    online_prompts
        The same for power, gradient, backprop and decoy, but not for simulate; their utility is measured on as many at most.
    pairs
        Tokens of the attacker's own text.
    online_pairs
        Of those, how many go through power, gradient, backprop and decoy; the others through Gaussian noise of the same length.
    calibration
        Tokens of public text behind the offline directions.
    steps
        Of gradient matching.
    stops
        Of its early stopping.
    mlp_steps
        Of training the inverter.
    width
        Candidates per position of a search that no acceptance ends.
    online_width
        The same against power, gradient, backprop and decoy: the last makes the true token an unlikely candidate.
    utility_prompts
        Prompts whose perplexity is measured.
    seed
        Of prompts, text and attacks.
    resume
        Keep what the committed record has of settings measured on the same prompts and text, and add the attacks they lack.
    write
        Whether to write the record.
    """
    directory = locate(model)
    tokenizer = Tokenizer(directory)
    material = victims(tokenizer.encode, b"pripert", None, prompts, 0, seed)
    first = Scene.load(model, f"{depths[0]}:-2")
    auxiliary, owned = attackers(tokenizer.encode, len(first.head.embedding()), None, pairs, seed)
    specs = {
        "actinv_0": f"actinv:calibrate=false,steps={steps}",
        "actinv": f"actinv:steps={steps}",
        "actinv_K": f"actinv:stops={'+'.join(map(str, stops))}",
        "ridge": "ridge",
        "mlp": f"mlp:steps={mlp_steps}",
        "search": f"search:width={width}",
        "search_blind": f"search:width={width}",
        "simulate": "simulate-and-match",
    }
    plan = Plan(
        material.items,
        online_prompts,
        auxiliary,
        -(-online_pairs // auxiliary.shape[1]),
        utility_prompts,
        {name: spec for name, spec in specs.items() if name in attacks},
        online_width,
        Prior.load(directory),
    )
    config: dict[str, Any] = {
        "model": model,
        "dtype": "float32",
        "codec": "fp32",
        "tail_layers": 2,
        "prompts": material.prompts.source,
        "prompt_ids": [item.id for item in material.items],
        "prompt_tokens": [material.prompts.shortest, material.prompts.longest],
        "online_prompts": online_prompts,
        "auxiliary": owned.source,
        "pairs": owned.pairs,
        "online_pairs": online_pairs,
        "calibration_tokens": calibration,
        "attacks": plan.attacks,
        "online_width": online_width,
        "attacks_meaning": "actinv_K: the guess after K steps; search_blind: takes the noise for Gaussian of its length",
        "derived": "every reading is derived; the paper is known from its abstract only",
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    earlier = _earlier(config) if resume else None
    if earlier:
        config["attacks"] = {**earlier.config["attacks"], **plan.attacks}
    figures: dict[str, Figure] = dict(earlier.figures) if earlier else {}
    samples: dict[str, list[Any]] = dict(earlier.samples) if earlier else {}
    config["commands"] = [*(earlier.config["commands"] if earlier else []), command("pripert")]
    for depth in depths:
        clean = Scene.load(model, f"{depth}:-2")
        utility = Utility(directory, clean.cut)
        hidden = clean.auxiliary(auxiliary).released  # [S, T, D], of which every defence is a function
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "directions.safetensors"
            if "offline" in readings:
                public = auxiliary[: max(1, calibration // auxiliary.shape[1])]
                write_directions(path, calibrate_directions(directory, depth, ids=public, seed=seed))
            for row in _rows(readings, betas, path, median_norm(clean.head, "pripert")):
                label = f"k{depth}_{row.name}_{row.beta:g}_".replace(".", "_")
                lacking = _lacking(row, plan, label, figures)
                if not lacking.attacks:
                    continue
                found, raw = _measure(clean.under(row.defence), utility, row, lacking, hidden, label, seed)
                figures |= found
                samples |= raw
                if write:  # after every setting: all of them take hours
                    if resume and (meanwhile := _earlier(config)):  # other settings may be measured beside these
                        figures, samples = {**meanwhile.figures, **figures}, {**meanwhile.samples, **samples}
                        config["commands"] = list(dict.fromkeys([*meanwhile.config["commands"], *config["commands"]]))
                    write_record(new_record("pripert", command("pripert"), config, figures, dict(samples)), RECORDS)
    finish(new_record("pripert", command("pripert"), config, figures, dict(samples)), write=False)


def _earlier(config: dict[str, Any]) -> Record | None:
    """The committed record, of which all but settings and attacks is as in `config`.

    Raises:
        InputError: it is not.
    """
    record = recorded("pripert", config, config.keys() - {"attacks", "commands"})
    for name, spec in config["attacks"].items():
        if record is not None and (held := record.config["attacks"].get(name, spec)) != spec:
            raise InputError(f"record pripert was measured with {name} as {held}, not {spec}; give the same options")
    return record


def _lacking(row: Row, plan: Plan, label: str, figures: Container[str]) -> Plan:
    """The plan without attacks of which there are figures, and those that this setting does not get."""
    senseless = {"search_blind"} if row.name == "gaussian" else set()
    if not row.online:
        senseless.add("simulate")  # the law alone decides
    attacks = {
        name: spec
        for name, spec in plan.attacks.items()
        if name not in senseless and f"{label}{_named(name, spec)[0]}_token_accuracy" not in figures
    }
    return plan._replace(attacks=attacks, utility_items=0 if f"{label}perplexity" in figures else plan.utility_items)


def _named(name: str, spec: str) -> list[str]:
    """What an attack's guesses are called: one name, or one of every number of steps."""
    stops = Spec.parse(spec).options.get("stops")
    return [f"actinv_{stop}" for stop in stops.split("+")] if stops else [name]


def _rows(readings: Sequence[str], betas: Sequence[float], path: Path, scale: Scale) -> list[Row]:
    """Each β's settings, Gaussian noise first."""
    rows = []
    for beta in betas:
        # "relative" would measure the scale anew for each of thousands of sequences
        gaussian = f"gaussian:sigma={beta * scale.norm / math.sqrt(scale.width):.6g}"
        rows.append(Row("gaussian", gaussian, False, beta, gaussian))
        for reading in readings:
            options = f"directions={path}" if reading == "offline" else f"reading={reading}"
            rows.append(Row(reading, f"pripert:beta={beta},{options}", reading in ONLINE, beta, gaussian))
    return rows


def _measure(
    scene: Scene,
    utility: Utility,
    row: Row,
    plan: Plan,
    hidden: torch.Tensor,
    label: str,
    seed: int,
) -> tuple[dict[str, Figure], dict[str, list[Any]]]:
    """All figures that a setting lacks, and raw samples; `hidden` [S, T, D] are the undefended states of the attacker's text."""
    few = plan.online_items if row.online else len(plan.items)
    items = plan.items if "simulate" in plan.attacks else plan.items[:few]
    costs, observations = [], []
    for index, item in enumerate(track(items, f"{label}release")):
        states = scene.hidden(torch.tensor([item.ids]))[0]  # [T, D]
        defence = build_defence(row.defence, attacker_secret(seed, -1, index), scene.head)
        started = time.perf_counter()
        released = defence.release(states, History().extend(0, item.ids))
        costs.append((time.perf_counter() - started) * 1e3 / len(item.ids))
        observations.append(Observation(released[None]))  # a float32 wire loses nothing
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    if plan.utility_items:
        outcome = utility_outcome(utility, scene, [item.ids for item in items[:few][: plan.utility_items]])
        figures = {label + name: figure for name, figure in outcome.figures.items()}
        figures[label + "client_ms_per_token"] = median(costs, "ms")
        samples[label + "client_ms_per_token"] = costs

    learned = LEARNED & plan.attacks.keys()
    threat = scene.threat(_auxiliary(scene, row, plan, hidden, seed) if learned else None, plan.prior, seed=seed)
    if row.online:
        threat = threat._replace(simulate=scene.under(row.gaussian).threat(seed=seed).simulate)
    blind = _blind(scene, row, plan, hidden, threat) if "search_blind" in plan.attacks else None
    for name, guesses in _attacked(threat, blind, plan, observations, few, row):
        values = [token_accuracy(item.ids, guess.tokens.tolist()) for item, guess in zip(items, guesses, strict=False)]
        scored = [value for value in values if isinstance(value, float)]
        figure = over_documents(scored, [float(len(item.ids)) for item in items[: len(scored)]])
        if not isinstance(figure, Figure):
            raise TypeError(f"{label}{name}: {figure.reason}")
        figures[f"{label}{name}_token_accuracy"] = figure
        samples[f"{label}{name}_token_accuracy"] = scored
    return figures, samples


def _auxiliary(scene: Scene, row: Row, plan: Plan, hidden: torch.Tensor, seed: int) -> Auxiliary:
    """The attacker's text through the defence; where that is too dear, most of it through noise of the same length."""
    if not row.online:
        return scene.auxiliary(plan.auxiliary, seed=seed, hidden=hidden)
    few = plan.online_sequences
    own = scene.auxiliary(plan.auxiliary[:few], seed=seed, hidden=hidden[:few])
    if few >= len(hidden):
        return own
    rest = scene.under(row.gaussian).auxiliary(plan.auxiliary[few:], seed=seed, hidden=hidden[few:])
    return Auxiliary(plan.auxiliary, torch.cat([own.released, rest.released]))


def _blind(scene: Scene, row: Row, plan: Plan, hidden: torch.Tensor, threat: Threat) -> Threat:
    """The same attacker, who takes the perturbation for Gaussian noise of its length, also in its own text."""
    channel = build_channel(row.gaussian)
    if row.online:  # without a subspace, point estimates under either law are the same
        return threat._replace(channel=channel)
    believed = scene.under(row.defence)
    believed.channel = channel
    own = believed.auxiliary(plan.auxiliary, seed=threat.seed, hidden=hidden)
    return believed.threat(own, threat.prior, seed=threat.seed)


def _attacked(
    threat: Threat, blind: Threat | None, plan: Plan, observations: Sequence[Observation], few: int, row: Row
) -> Iterator[tuple[str, list[Guess]]]:
    """(name, guesses) of every attack: on all prompts of simulate, on the first few of the others."""
    for name, spec in track(plan.attacks.items(), f"{row.defence} attacks"):
        known = blind if name == "search_blind" else threat
        assert known is not None
        wide = f"search:width={plan.online_width}" if row.online and name in ("search", "search_blind") else spec
        reader = prepare(build_attack(wide), known)
        if name == "actinv_K":
            assert isinstance(reader, Sweep)
            swept = [reader.sweep(observation) for observation in observations[:few]]
            yield from ((f"actinv_{stop}", [guesses[stop] for guesses in swept]) for stop in swept[0])
        else:
            seen = observations if name == "simulate" else observations[:few]
            yield name, [one.guess for one in read_all(reader, seen)]


if __name__ == "__main__":
    app()
