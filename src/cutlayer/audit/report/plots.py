"""Plots as inline SVG that follow the page: text takes the page's colour and font, so light and dark need one picture.

Footgun: names of defences come from records, which may be a stranger's; matplotlib would read ``$…$`` in them as formulas.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from cutlayer.audit.report.settings import Bar, Setting
    from cutlayer.records.record import Figure

_INK: Final = "#010203"
"""Stands for the page's text colour."""
_FAINT: Final = "#010204"
"""Stands for the page's colour of lines."""
_ACCENT: Final = "#010205"
"""Stands for the page's colour of marks."""
_STANDS_FOR: Final = {_INK: "var(--ink)", _FAINT: "var(--line)", _ACCENT: "var(--mark)"}
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.grid": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_HEAT: Final = "YlOrRd"
_MOST_ROWS: Final = 24
_MOST_COLUMNS: Final = 12
_LONGEST_NAME: Final = 34


def heat_map(settings: Sequence[Setting]) -> str:
    """Cuts across, defences down; the greatest advantage of any attack in each field."""
    cuts = list(dict.fromkeys(setting.cut for setting in settings))[:_MOST_COLUMNS]
    defences = list(dict.fromkeys(setting.defence for setting in settings))[:_MOST_ROWS]
    known = {(setting.cut, setting.defence): setting.leakage for setting in settings}
    with mpl.rc_context(_STYLE):
        canvas, axes = _canvas(2.6 + 0.9 * len(cuts), 0.8 + 0.42 * len(defences))
        colours = mpl.colormaps[_HEAT]
        for row, defence in enumerate(defences):
            for column, cut in enumerate(cuts):
                figure = known.get((cut, defence))
                value = None if figure is None else min(max(figure.value, 0.0), 1.0)
                face = "none" if value is None else colours(0.05 + 0.85 * value)
                axes.add_patch(
                    Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=face, edgecolor=_FAINT, lw=0.6)
                )
                ink = _INK if value is None else "#ffffff" if value > 0.6 else "#3b1d00"
                axes.text(
                    column, row, "–" if figure is None else f"{figure.value:.2f}", ha="center", va="center", color=ink
                )
        axes.set(xlim=(-0.5, len(cuts) - 0.5), ylim=(len(defences) - 0.5, -0.5))
        axes.set_xticks(range(len(cuts)), [_short(f"cut {cut}") for cut in cuts])
        axes.set_yticks(range(len(defences)), [_short(defence) for defence in defences])
        axes.xaxis.tick_top()
        for spine in axes.spines.values():
            spine.set_visible(False)
        return _svg(canvas, "heat")


def attack_bars(setting: Setting, name: str) -> str:
    """The advantage of every attack on one setting, with intervals.

    Args:
        setting: with cells.
        name: unique in the page.
    """
    rows = [(str(record.cell.attack), record.cell.threat, record.leakage) for record in setting.cells if record.leakage]
    threats = {threat for _, threat, _ in rows}
    shown = sorted(rows, key=lambda row: row[2].value if row[2] else 0.0)[-_MOST_ROWS:]
    with mpl.rc_context(_STYLE):
        canvas, axes = _canvas(6.4, 0.62 + 0.34 * len(shown))
        for at, (_, _, figure) in enumerate(shown):
            if figure is not None:
                axes.barh(at, figure.value, height=0.62, color=_ACCENT, alpha=0.85)
                _interval(axes, figure, at)
                axes.text(1.03, at, f"{figure.value:.2f}", va="center", ha="left", fontsize=9, clip_on=False)
        axes.set_yticks(
            range(len(shown)),
            [_short(attack if len(threats) == 1 else f"{attack} · {who}") for attack, who, _ in shown],
        )
        low = min([0.0, *(figure.low for _, _, figure in shown if figure)])
        axes.set(xlim=(max(low, -1.0), 1.0), ylim=(-0.6, len(shown) - 0.4))
        axes.xaxis.grid(visible=True)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return _svg(canvas, name)


def trade_off(settings: Sequence[Setting], bar: Bar) -> str:
    """Leakage against perplexity increase, the bar's corner marked."""
    points = [
        (setting, setting.leakage, setting.perplexity_increase)
        for setting in settings
        if setting.leakage and setting.perplexity_increase
    ][: 4 * _MOST_ROWS]
    with mpl.rc_context(_STYLE):
        canvas, axes = _canvas(6.8, 4.0)
        most = max([2 * bar.perplexity_increase, *(1.1 * cost.value for _, _, cost in points if cost)])
        least = min([0.0, *(cost.value for _, _, cost in points if cost)])
        axes.axvspan(least - most, bar.perplexity_increase, 0, bar.advantage / 1.05, color="#2a9d6f", alpha=0.16, lw=0)
        axes.annotate("meets the bar", (0, 0), (4, 4), xycoords="axes fraction", textcoords="offset points", fontsize=9)
        for number, (_, leakage, cost) in enumerate(points, start=1):
            if leakage is not None and cost is not None:
                axes.errorbar(
                    cost.value,
                    leakage.value,
                    xerr=[[max(0.0, cost.value - cost.low)], [max(0.0, cost.high - cost.value)]],
                    yerr=[[max(0.0, leakage.value - leakage.low)], [max(0.0, leakage.high - leakage.value)]],
                    fmt="o",
                    ms=6,
                    color=_ACCENT,
                    ecolor=_ACCENT,
                    elinewidth=1,
                    alpha=0.9,
                )
                axes.annotate(str(number), (cost.value, leakage.value), (5, 5), textcoords="offset points", fontsize=9)
        axes.set(xlim=(least - 0.03 * most, most), ylim=(0, 1.05))
        axes.set_xlabel("perplexity increase")
        axes.set_ylabel("advantage of the best attack")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        return _svg(canvas, "tradeoff")


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    canvas.patch.set_alpha(0.0)
    axes = canvas.add_subplot()
    axes.patch.set_alpha(0.0)
    return canvas, axes


def _interval(axes: Axes, figure: Figure, at: float) -> None:
    axes.plot([figure.low, figure.high], [at, at], color=_INK, lw=1.4, solid_capstyle="butt")
    for end in (figure.low, figure.high):
        axes.plot([end, end], [at - 0.14, at + 0.14], color=_INK, lw=1.4)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _svg(canvas: Canvas, name: str) -> str:
    """The SVG element alone, without ids that could meet those of another plot, addresses, or fixed colours of text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, variable in _STANDS_FOR.items():
        text = text.replace(colour, variable)
    return text.strip()
