"""What each layer of the client would be worth as a defence: amplification factors, margins, information.

Amplification (PAF) says how far noise on a hidden state throws a continuous inverter, margins how much noise a search over
tokens withstands, V-information what a trained reader gets out of the undefended state. Writes ``paf``; ``paf.py draw`` makes
docs/figures/paf.svg from the committed record.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import torch
from cyclopts import App
from rich.progress import track

from cutlayer.audit.depths import layer_outputs
from cutlayer.audit.information.matrix_renyi import renyi_index
from cutlayer.audit.information.v_information import Family, v_information
from cutlayer.audit.jacobian import Jacobians, jacobians
from cutlayer.audit.margins import candidate_states, margin_map, nearest_rows
from cutlayer.audit.paf import (
    DAMPING,
    STEPS,
    Amplification,
    amplification,
    damped_inverse,
    token_amplification,
    weakest_direction,
)
from cutlayer.corpora.encyclopedia import documents
from cutlayer.corpora.split import is_test, study_documents
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.parts import load_client
from cutlayer.records.record import Figure, Record, exact, new_record, quantile, read_record
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.types import Cut
from report import RECORDS, ROOT, command, finish

if TYPE_CHECKING:
    from pathlib import Path

    from cutlayer.models.parts import Head

DEPTHS: Final = (1, 2, 4, 8, 15, 22, 29)
"""Where margins, token amplification and information are measured; PAF is at every depth."""
LENGTH: Final = 48
"""Tokens of a prompt."""
STRENGTH: Final = 0.1
"""Length of the perturbations of TAF over the hidden state's."""
DRAWS: Final = 16
"""Isotropic perturbations per token."""
NEIGHBOURS: Final = 128
SAMPLE: Final = 1024
COMPONENTS: Final = 8
WIDTH: Final = 4.0
"""Kernel width of the Rényi index: the median distance of eight unit-variance components."""
QUANTILES: Final = {"p10": 0.1, "median": 0.5, "p90": 0.9}
FIGURE: Final = ROOT / "docs" / "figures" / "paf.svg"

Samples = dict[str, list[Any]]

app = App(help=__doc__)


@app.default
def paf(
    *,
    model: str = "smollm2-135m",
    prompts: int = 24,
    tokens: int = 2,
    text: int = 20_000,
    seed: int = 0,
    write: bool = True,
) -> None:
    """Measure and record.

    Args:
        model: its name or directory.
        prompts: test documents, the first 48 tokens of each.
        tokens: positions per prompt, after the first.
        text: tokens for the information estimates, from other documents.
        seed: of positions and perturbations.
        write: the record.
    """
    directory = locate(model)
    layers = read_config(directory).num_hidden_layers
    deepest = layers - 1
    depths = [depth for depth in DEPTHS if depth <= deepest]
    samples: Samples = {}
    sentences = _prompts(directory, prompts)
    places = random.Random(seed)
    chosen = [(ids, sorted(places.sample(range(1, LENGTH), tokens))) for ids in sentences]
    single = _head(directory, layers, deepest, torch.float32)
    _amplifications(_head(directory, layers, deepest, torch.float64), single, chosen, depths, samples, seed)
    _margins(single, chosen, depths, samples, seed)
    figures = {
        f"{name}_{label}": quantile(values, q, "ratio")
        for name, values in samples.items()
        for label, q in QUANTILES.items()
    }
    figures |= _information(directory, single, text, depths, samples)
    config = {
        "model": model, "prompts": prompts, "tokens_per_prompt": tokens, "prompt_tokens": LENGTH, "seed": seed,
        "text": "encyclopedia leads; test documents for Jacobians and margins, others for information; never position 0",
        "layers": list(range(1, deepest + 1)), "depths": depths, "damping": DAMPING, "gradient_steps": list(STEPS),
        "jacobian_dtype": "float64", "taf_strength": STRENGTH, "taf_draws": DRAWS, "taf_search_competitors": NEIGHBOURS,
        "margin_neighbours": NEIGHBOURS, "margin_sample": SAMPLE, "information_tokens": text,
        "renyi_components": COMPONENTS, "renyi_width": WIDTH,
    }  # fmt: skip
    finish(new_record("paf", command("paf"), config, figures, samples), write=write)


@app.command(name="draw")
def draw_committed() -> None:
    """Draw docs/figures/paf.svg from the committed record."""
    draw(read_record(RECORDS / "paf.json"))


def _head(directory: Path, layers: int, depth: int, dtype: torch.dtype) -> Head:
    return load_client(directory, Cut.parse(f"{depth}:{depth + 1}", layers), dtype).head


def _prompts(directory: Path, count: int) -> list[list[int]]:
    encode = Tokenizer(directory).encode
    # Some leads are shorter than a prompt; the order is the study's own.
    encoded = (encode(document.text) for document in study_documents(300))
    return [ids[:LENGTH] for ids in encoded if len(ids) >= LENGTH][:count]


def _add(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def _amplifications(
    double: Head,
    single: Head,
    chosen: list[tuple[list[int], list[int]]],
    depths: list[int],
    samples: Samples,
    seed: int,
) -> None:
    """PAF at every depth, TAF at some."""
    table = double.embedding()
    size = float(table.square().mean().sqrt())
    generator = torch.Generator().manual_seed(seed)
    for ids, positions in track(chosen, "amplification"):
        for found in jacobians(double, ids, positions):
            for row in range(len(found.blocks)):
                read = amplification(found.blocks[row], found.inverses[row], found.states[row], size)
                for name, value in _named(read).items():
                    _add(samples, f"{name}_depth_{row + 1}", value)
            token = ids[found.position]
            rivals = nearest_rows(single.embedding(), token, NEIGHBOURS).tolist()
            states = torch.cat(
                list(candidate_states(single, ids[: found.position], [token, *rivals], depths)), 1
            ).double()
            rows = table - table[token]  # [V, D]
            for depth, candidates in zip(depths, states, strict=True):
                for name, value in _flips(found, depth, rows, candidates, generator).items():
                    _add(samples, f"{name}_depth_{depth}", value)


def _named(read: Amplification) -> dict[str, float]:
    return {
        "paf_rms": read.rms,
        "paf_max": read.largest,
        "paf_lam": read.damped,
        "paf_bp": read.gradient,
        **{f"paf_k{count}": value for count, value in read.stopped.items()},
        "rpaf_rms": read.rms * read.scale,
        "rpaf_lam": read.damped * read.scale,
    }


def _flips(
    found: Jacobians, depth: int, rows: torch.Tensor, candidates: torch.Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Token amplification of isotropic noise (median over draws) and of the weakest direction (worse of both signs).

    Args:
        found: one position.
        depth: layers.
        rows: [V, D] E[v'] − E[v].
        candidates: [1 + C, D] states of the true token and its rivals.
        generator: of the draws.
    """
    block, inverse, state = (part[depth - 1] for part in (found.blocks, found.inverses, found.states))
    noise = torch.randn(DRAWS, len(state), generator=generator, dtype=state.dtype)
    weak = weakest_direction(inverse)
    unit = torch.cat([noise / noise.norm(dim=-1, keepdim=True), weak[None], -weak[None]])
    delta = STRENGTH * state.norm() * unit  # [DRAWS + 2, D]
    steps = candidates[1:] - candidates[0]
    readings = {
        "taf_converged": token_amplification(delta @ inverse.mT, rows),
        "taf_damped": token_amplification(delta @ damped_inverse(block).mT, rows),
        "taf_search": token_amplification(delta, steps),
    }
    return {
        name: value
        for reading, values in readings.items()
        for name, value in (
            (f"{reading}_isotropic", float(values[:DRAWS].median())),
            (f"{reading}_weakest", float(values[DRAWS:].max())),
        )
    }


def _margins(
    head: Head, chosen: list[tuple[list[int], list[int]]], depths: list[int], samples: Samples, seed: int
) -> None:
    for ids, positions in track(chosen, "margins"):
        for position in positions:
            for margin in margin_map(
                head, ids[:position], ids[position], depths, neighbours=NEIGHBOURS, sample=SAMPLE, seed=seed
            ):
                _add(samples, f"margin_min_depth_{margin.depth}", margin.nearest / margin.norm)
                _add(samples, f"margin_p01_depth_{margin.depth}", margin.quantile(0.01) / margin.norm)


def _information(directory: Path, head: Head, text: int, depths: list[int], samples: Samples) -> dict[str, Figure]:
    """V-information of both families and the Rényi index at some depths."""
    encode = Tokenizer(directory).encode
    windows: list[list[int]] = []
    for document in documents():
        if (LENGTH - 1) * len(windows) >= text:
            break
        if not is_test(document.id) and len(ids := encode(document.text)) >= LENGTH:
            windows.append(ids[:LENGTH])
    whole = torch.tensor(windows)  # [S, T]
    collected: list[list[torch.Tensor]] = [[] for _ in depths]
    for batch in track(whole.split(32), "states"):  # type: ignore[no-untyped-call]
        with torch.no_grad(), layer_outputs(head) as outputs:
            head(batch, head.new_cache())
        for store, depth in zip(collected, depths, strict=True):
            store.append(outputs[depth - 1][:, 1:].flatten(0, 1))
    truth = whole[:, 1:].flatten()  # [N]
    owners = torch.arange(len(whole)).repeat_interleave(LENGTH - 1).tolist()
    figures: dict[str, Figure] = {}
    families: tuple[Family, ...] = ("linear", "mlp")
    for parts, depth in track(list(zip(collected, depths, strict=True)), "information"):
        states = torch.cat(parts)  # [N, D]
        for family in families:
            read = v_information(states, truth, owners, family=family)
            figures[f"v_information_{family}_depth_{depth}"] = read.information
            figures[f"v_information_{family}_shuffled_depth_{depth}"] = read.shuffled
            figures["v_information_entropy"] = read.entropy
        lengths = states.norm(dim=-1)
        some = (lengths <= 10 * lengths.median()).nonzero()[:, 0][:1000]
        index = renyi_index(states[some], head.embedding()[truth[some]], components=COMPONENTS, width=WIDTH)
        figures[f"renyi_depth_{depth}"] = exact(index.value, "index", len(some))
        figures[f"renyi_shuffled_depth_{depth}"] = exact(index.shuffled, "index", len(some))
        figures["renyi_ceiling"] = exact(index.ceiling, "index", len(some))
    samples["information_documents"] = [len(whole)]
    return figures


def draw(record: Record) -> None:
    """Draw docs/figures/paf.svg: amplification, margins and information over depth."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    mpl.rcParams.update({"svg.hashsalt": "cutlayer", "svg.fonttype": "none", "font.size": 9})
    figures, layers, depths = record.figures, record.config["layers"], record.config["depths"]
    canvas = Canvas(figsize=(11, 3.6), layout="constrained")
    left, middle, right = canvas.subplots(1, 3)

    def line(axes: Any, name: str, over: list[int], label: str) -> None:
        low, centre, high = ([figures[f"{name}_depth_{d}_{q}"].value for d in over] for q in ("p10", "median", "p90"))
        (drawn,) = axes.plot(over, centre, marker=".", label=label)
        axes.fill_between(over, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)

    names = {
        "rms": "converged, PAF rms",
        "lam": "damped, PAF λ",
        "k1000": "1000 steps",
        "k100": "100 steps",
        "bp": "gradient",
    }
    for name, label in names.items():
        line(left, f"paf_{name}", layers, label)
    left.set(title="Amplification of isotropic noise", ylabel="PAF", yscale="log")
    line(middle, "margin_min", depths, "nearest competitor seen")
    line(middle, "margin_p01", depths, "1 % quantile of all tokens")
    middle.set(title="Margins of a token search", ylabel="distance / norm of the state", ylim=(0, None))
    for family in ("linear", "mlp"):
        points = [figures[f"v_information_{family}_depth_{d}"] for d in depths]
        values = [point.value for point in points]
        spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
        right.errorbar(depths, values, yerr=spread, marker=".", label=f"V-information, {family}")
    shuffled = [figures[f"v_information_linear_shuffled_depth_{d}"].value for d in depths]
    right.plot(depths, shuffled, marker=".", linestyle=":", label="linear, targets shuffled")
    right.axhline(figures["v_information_entropy"].value, color="grey", linewidth=0.8, label="entropy of the target")
    right.set(
        title="What a trained reader gets",
        ylabel="bits / token",
        ylim=(-0.3, figures["v_information_entropy"].value * 1.35),
    )
    for axes in (left, middle, right):
        axes.set_xlabel("layers on the client")
        axes.legend(frameon=False, fontsize=7)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    app()
