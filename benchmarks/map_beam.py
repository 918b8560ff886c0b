"""Maximum a posteriori decoding against candidate search under strong Gaussian noise.

Prints and writes the record ``map_beam``.
"""

from __future__ import annotations

from typing import Any

from cyclopts import App

from attacked import Study
from cutlayer.audit.utility import Utility
from cutlayer.records.record import Figure, exact, new_record
from report import command, finish

app = App(help=__doc__)
ATTACKS = {
    "ridge": "ridge",
    "search": "search",
    "search_wide": "search:width=256",
    "beam_without_prior": "map-beam:gamma=0,proposals=256",
    "map_beam": "map-beam:proposals=256",
}


@app.default
def map_beam(
    *,
    model: str = "smollm2-135m",
    depth: int = 2,
    defence: str = "gaussian:relative=0.8",
    prompts: int = 102,
    seeds: int = 3,
    pairs: int = 60_000,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    depth
        Layers of the client.
    defence
        Specification.
    prompts
        How many, divided among the seeds.
    seeds
        How many.
    pairs
        Tokens of the attacker's text.
    write
        Whether to write the record.
    """
    study = Study(model, prompts, seeds, pairs)
    scene = study.scene(depth).under(defence)
    threat = scene.threat(study.auxiliary(scene, depth), study.prior)
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    for name, spec in ATTACKS.items():
        found, raw = study.figures(name, study.attack(spec, threat, scene, name))
        figures |= found
        samples |= raw
    for rival in ("search", "search_wide"):
        gain = figures["map_beam_token_accuracy"].value - figures[f"{rival}_token_accuracy"].value
        figures[f"gain_over_{rival}"] = exact(gain, "fraction", len(study.victims))
    utility = Utility(scene.directory, scene.cut).measure(scene, study.ids[-40:])
    figures["perplexity_increase"] = exact(utility.perplexity_increase, "relative", utility.tokens)
    figures["greedy_agreement"] = exact(utility.agreement, "fraction", utility.tokens)
    strongest = max(ATTACKS, key=lambda name: figures[f"{name}_token_accuracy"].value)
    reached = figures[f"{strongest}_token_accuracy"]
    config = {
        **study.config(), "depth": depth, "defence": defence, "attacks": ATTACKS,
        "measured": [study.measured(depth, defence, ATTACKS[strongest], reached, "map_beam")],
    }  # fmt: skip
    finish(new_record("map_beam", command("map_beam"), config, figures, samples), write=write)


if __name__ == "__main__":
    app()
