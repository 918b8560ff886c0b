"""docs/figures/wan.svg from the record `wan`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cutlayer.records.record import Record
from wan_answers import TYPES

_SPECULATORS: Final = {
    "cunningham_n5": "Cunningham, N = 5",
    "recycling_treestatic": "token recycling",
    "auto": "default",
}
_RTTS: Final = (20, 80, 150)
_RATES: Final = (100, 20)


def draw(record: Record, path: Path) -> None:
    """Tokens per round trip by type of text, and tokens per second by link."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figures = record.figures
    chart, (trips, speed) = pyplot.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    width = 0.8 / len(_SPECULATORS)
    for number, (name, label) in enumerate(_SPECULATORS.items()):
        found = [figures[f"{name}_{kind}_tokens_per_trip"] for kind in TYPES]
        at = [index + (number - 1) * width for index in range(len(TYPES))]
        spread = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
        trips.bar(at, [f.value for f in found], width, yerr=spread, capsize=2, color=f"C{number}", label=label)
    trips.axhline(1, color="grey", linewidth=0.8)
    trips.set(ylabel="tokens per round trip", title="80 ms, 100 Mbit/s, greedy")
    trips.set_xticks(range(len(TYPES)), TYPES)
    trips.legend(frameon=False)
    for number, rate in enumerate(_RATES):
        for name, label, style in (("off", "one token at a time", "--"), ("auto", "default", "-")):
            rates = [figures[f"rtt{rtt}_{rate}_{name}_tokens_per_s"].value for rtt in _RTTS]
            speed.plot(_RTTS, rates, f"o{style}", color=f"C{number}", label=f"{label}, {rate} Mbit/s")
    speed.set(
        xlabel="round trip, ms", ylabel="tokens per second", ylim=(0, 1.4 * speed.get_ylim()[1]), title="one session"
    )
    speed.legend(frameon=False, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Date": None})
