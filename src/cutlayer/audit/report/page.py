"""The report as one self-contained HTML page: no script, nothing fetched, everything from records escaped."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import Environment, StrictUndefined

from cutlayer.audit.cell_record import PRIOR
from cutlayer.audit.report.plots import attack_bars, heat_map, trade_off
from cutlayer.audit.report.settings import Bar, settings_of
from cutlayer.audit.report.words import CAVEATS, named, percent, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.audit.report.settings import Setting
    from cutlayer.records.record import Figure

EXTRA: Final = {
    "content_accuracy": "Content words",
    "entity_recall": "Names etc.",
    "canary_exact_match": "Secrets",
    "exact_match": "Whole prompts",
}
"""Further figures shown where any cell has them."""
_MOST_CELLS: Final = 600
_MOST_BARS: Final = 6
_MOST_PROMPTS: Final = 10
_MOST_TEXTS: Final = 6
_LONGEST_TEXT: Final = 2000
_LONGEST_REASON: Final = 400


class _Row(NamedTuple):
    attack: str
    threat: str
    accuracy: str
    accuracy_interval: str
    width: float | None
    advantage: str
    advantage_interval: str
    extra: list[str]
    seconds: str
    worst: bool


def render_page(records: Sequence[CellRecord], bar: Bar | None = None) -> str:
    """The page of a directory's records.

    Args:
        records: at least one.
        bar: what settings are held against; None is the project's own.
    """
    against = bar or Bar()
    settings = settings_of(records)
    read_best = max(
        (setting for setting in settings if setting.leakage),
        key=lambda s: s.leakage.value if s.leakage else 0.0,
        default=None,
    )
    worst = read_best.worst if read_best else None
    rows = sum(len(setting.cells) for setting in settings)
    columns = {key: title for key, title in EXTRA.items() if any(key in record.figures for record in records)}
    priced = [setting for setting in settings if setting.leakage and setting.perplexity_increase]
    compared = sorted(
        (setting for setting in settings if setting.leakage and len(setting.cells) > 1),
        key=lambda s: -(s.leakage.value if s.leakage else 0.0),
    )
    values: dict[str, Any] = {
        "model": named(records[0].config.model),
        "threats": len({record.cell.threat for record in records}) > 1,
        "verdict": verdict(settings, against),
        "good": any(not setting.shortcomings(against) for setting in settings),
        "facts": _facts(records, settings),
        "extra": list(columns.items()),
        "settings": _groups(settings, list(columns), against),
        "hidden_rows": max(0, rows - _MOST_CELLS),
        "heat": heat_map(settings) if len(settings) > 1 else "",
        "trade": trade_off(priced, against) if priced else "",
        "trade_names": [setting.name for setting in priced],
        "bars": [(setting.name, attack_bars(setting, f"bars{i}")) for i, setting in enumerate(compared[:_MOST_BARS])],
        "hidden_bars": max(0, len(compared) - _MOST_BARS),
        "worst_prompts": _prompts(worst) if worst else [],
        "worst_by": f"{worst.cell.attack} at {read_best.name}" if worst and read_best else "",
        "texts": _texts(worst) if worst else [],
        "without": [_missing(record) for setting in settings for record in setting.without][:_MOST_CELLS],
        "measured": _measured(records),
        "command": records[0].record.command[:_LONGEST_TEXT],
        "caveats": CAVEATS,
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text("utf-8")).render(values)


def _facts(records: Sequence[CellRecord], settings: Sequence[Setting]) -> list[str]:
    config = records[0].config
    attacks = {record.cell.attack for record in records}
    return [
        named(config.model),
        f"{config.prompts.count} prompts of {config.prompts.shortest}–{config.prompts.longest} tokens",
        _counted(len(settings), "setting"),
        _counted(len(attacks), "attack"),
        _counted(config.repeats, "session") + " per prompt",
        max(record.record.created for record in records)[:10],
    ]


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _groups(settings: Iterable[Setting], columns: list[str], bar: Bar) -> list[dict[str, Any]]:
    groups = []
    left = _MOST_CELLS
    for setting in settings:
        ranked = sorted(setting.cells, key=lambda r: -(r.leakage.value if r.leakage else -1.0))[: max(0, left)]
        left -= len(ranked)
        rows = [_row(record, columns, record is setting.worst) for record in ranked]
        why = setting.shortcomings(bar)
        if rows:
            groups.append({"name": setting.name, "rows": rows, "good": not why, "why": "; ".join(why)})
    return groups


def _row(record: CellRecord, columns: list[str], worst: bool) -> _Row:
    accuracy, advantage = record.figures.get("token_accuracy"), record.leakage
    return _Row(
        attack=record.cell.attack,
        threat=record.cell.threat,
        accuracy=percent(accuracy.value) if accuracy else "not measured",
        accuracy_interval=f"{100 * accuracy.low:.0f}–{100 * accuracy.high:.0f}" if accuracy else "",
        width=round(100 * min(max(accuracy.value, 0.0), 1.0), 1) if accuracy else None,
        advantage=f"{advantage.value:.2f}" if advantage else "not measured",
        advantage_interval=f"{advantage.low:.2f}–{advantage.high:.2f}" if advantage else "",
        extra=[_shown(record.figures.get(key)) for key in columns],
        seconds=f"{record.figures['seconds_per_prompt'].value:.2g}" if "seconds_per_prompt" in record.figures else "–",
        worst=worst,
    )


def _shown(figure: Figure | None) -> str:
    return "–" if figure is None else percent(figure.value)


def _prompts(record: CellRecord) -> list[dict[str, str]]:
    """The prompts that were read best, by id."""
    samples = record.samples
    read = samples.get("token_accuracy", [])
    order = [i for i in _first_pass(record) if i < len(read) and read[i] is not None]
    order.sort(key=lambda i: (-read[i], -samples["tokens"][i]))
    before = samples.get(f"{PRIOR}token_accuracy", [None] * len(read))
    return [
        {
            "id": str(samples["id"][i])[:200],
            "tokens": str(samples["tokens"][i]),
            "read": percent(read[i]),
            "prior": "–" if before[i] is None else percent(before[i]),
        }
        for i in order[:_MOST_PROMPTS]
    ]


def _texts(record: CellRecord) -> list[dict[str, Any]]:
    """Prompts beside their reconstructions, word by word, if texts were kept."""
    if "truth" not in record.samples or "guess" not in record.samples:
        return []
    shown = []
    for i in _first_pass(record)[:_MOST_TEXTS]:
        identity, truth, guess = (record.samples[column][i] for column in ("id", "truth", "guess"))
        sent, read = truth[:_LONGEST_TEXT].split(), guess[:_LONGEST_TEXT].split()
        blocks = difflib.SequenceMatcher(None, sent, read, autojunk=False).get_opcodes()
        shown.append(
            {
                "id": str(identity)[:200],
                "truth": [
                    ("same" if kind == "equal" else "other", " ".join(sent[a:b]))
                    for kind, a, b, _, _ in blocks
                    if a < b
                ],
                "guess": [
                    ("same" if kind == "equal" else "other", " ".join(read[c:d]))
                    for kind, _, _, c, d in blocks
                    if c < d
                ],
            }
        )
    return shown


def _first_pass(record: CellRecord) -> list[int]:
    """Rows of the first seed: every prompt once."""
    seeds = record.samples["seed"]
    return [i for i, seed in enumerate(seeds) if seed == seeds[0]]


def _missing(record: CellRecord) -> dict[str, object]:
    cell, config = record.cell, record.config
    return {
        "cut": cell.cut,
        "defence": cell.defence,
        "attack": cell.attack,
        "threat": cell.threat,
        "failed": config.status == "error",
        "status": "failed" if config.status == "error" else config.status,
        "reason": (config.reason or "")[:_LONGEST_REASON],
    }


def _measured(records: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """What every number on the page is of; where cells differ, all values."""
    owned = [f"{r.config.owned.pairs:,} tokens: {r.config.owned.source}" if r.config.owned else "none" for r in records]
    said: list[tuple[str, list[str]]] = [
        ("Model", [f"{named(r.config.model)} (fingerprint {r.config.fingerprint[:12]})" for r in records]),
        ("Prompts", [f"{r.config.prompts.count}, {r.config.prompts.source}" for r in records]),
        ("Prompt length", [f"{r.config.prompts.shortest}–{r.config.prompts.longest} tokens" for r in records]),
        ("Attacker’s own text", owned),
        ("Sessions per prompt", [str(r.config.repeats) for r in records]),
        ("Seeds", [", ".join(map(str, r.config.seeds)) for r in records]),
        ("Wire codec", [r.config.codec for r in records]),
        (
            "Client",
            [
                f"{r.config.client.layers} layers, {r.config.client.bytes / 1e9:.2f} GB (cut {r.cell.cut})"
                for r in records
            ],
        ),
        ("Versions", [", ".join(f"{k} {v}" for k, v in r.record.versions.items()) for r in records]),
        ("Machine", [", ".join(str(v) for v in r.record.hardware.values()) for r in records]),
        ("Cells took", [f"{sum(r.config.seconds for r in records):,.0f} s in all"]),
    ]
    return [(name, " · ".join(list(dict.fromkeys(values))[:8])[:_LONGEST_TEXT]) for name, values in said]
