"""Which setting to choose: the frontier of leakage, utility and what the client must hold.

A setting is on the frontier if no other is at least as good in all three and better in one. Among those that meet the bar
the client's memory decides, then perplexity, then leakage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.report.settings import Bar, Setting


class Candidate(NamedTuple):
    """A measured setting as a choice."""

    setting: Setting
    advantage: float
    """The greatest of any attack."""
    perplexity_increase: float | None
    """None if it was not measured; 0 by construction without a defence."""
    client_bytes: int
    shortcomings: list[str]
    frontier: bool


class Recommendation(NamedTuple):
    """The frontier and the choice."""

    candidates: list[Candidate]
    """Best first."""
    chosen: Candidate | None
    words: str


def recommend(settings: Sequence[Setting], bar: Bar) -> Recommendation:
    """Choose among settings.

    Args:
        settings: of one directory.
        bar: what the choice must meet.
    """
    candidates = [_candidate(setting, bar) for setting in settings if setting.leakage is not None]
    marked = [one._replace(frontier=not any(_dominates(other, one) for other in candidates)) for one in candidates]
    ranked = sorted(marked, key=lambda one: (bool(one.shortcomings), not one.frontier, one.advantage, _cost(one)))
    meeting = sorted((one for one in ranked if not one.shortcomings), key=_cost)
    if meeting:
        chosen = meeting[0]
        return Recommendation(
            ranked,
            chosen,
            f"Choose --cut {chosen.setting.cut} --defence {chosen.setting.defence}: of {len(meeting)} that meet the bar it "
            f"needs the least of the client, {chosen.client_bytes / 1e9:.2f} GB. Its advantage is {chosen.advantage:.2f}, by "
            f"{chosen.setting.worst.cell.attack if chosen.setting.worst else 'none'}.",
        )
    if not ranked:
        return Recommendation([], None, "No setting has figures, so none can be recommended.")
    least = min(ranked, key=lambda one: one.advantage)
    return Recommendation(
        ranked,
        None,
        f"No measured setting meets the bar ({bar}). The least readable is {least.setting.name}: "
        f"{'; '.join(least.shortcomings)}.",
    )


def _candidate(setting: Setting, bar: Bar) -> Candidate:
    leakage, increase = setting.leakage, setting.perplexity_increase
    free = 0.0 if setting.defence == "none" else None
    return Candidate(
        setting=setting,
        advantage=leakage.value if leakage else float("nan"),
        perplexity_increase=increase.value if increase else free,
        client_bytes=setting.client.bytes,
        shortcomings=setting.shortcomings(bar),
        frontier=False,
    )


def _coordinates(one: Candidate) -> tuple[float, float, float]:
    increase = float("inf") if one.perplexity_increase is None else one.perplexity_increase
    return one.advantage, increase, float(one.client_bytes)


def _dominates(other: Candidate, one: Candidate) -> bool:
    pairs = list(zip(_coordinates(other), _coordinates(one), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _cost(one: Candidate) -> tuple[float, float, float]:
    advantage, increase, client = _coordinates(one)
    return client, increase, advantage
