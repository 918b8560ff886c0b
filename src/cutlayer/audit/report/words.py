"""Figures and verdicts in words."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.report.settings import Bar, Setting
    from cutlayer.records.record import Figure

CAVEATS: Final = (
    "Attacks give a floor: a stronger attack may read more than the strongest that was run. What none of them read is not "
    "thereby safe.",
    "Accuracies are of these prompts, this model and this attacker's text; other languages and domains may leak more or less.",
    "Intervals cover the choice of prompts (bootstrap over documents, 95 %), not the choice of attacks.",
    "The number of tokens, timing and traffic are visible to a server under every setting and are not counted here.",
    "Whoever sees the same prompt in more sessions than were measured averages more noise away; see --repeats.",
)


class Verdict(tuple[str, ...]):
    """Sentences: the headline first."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """The most important."""
        return self[0]

    @property
    def rest(self) -> tuple[str, ...]:
        """What qualifies it."""
        return tuple(self[1:])


def percent(value: float) -> str:
    """A share, with a decimal where it matters.

    Examples:
        >>> percent(0.9964), percent(0.5), percent(1.0), percent(0.0004)
        ('99.6 %', '50 %', '100 %', '0.04 %')
    """
    shown = round(100 * value, 6)
    near = min(abs(shown), abs(100 - shown))
    digits = 0 if near >= 10 else 1 if near >= 0.05 else 2
    text = f"{shown:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits else text} %"


def named(model: str) -> str:
    """A model's name; of a directory the last part, as paths are nobody else's business."""
    return model if model.startswith("hf:") else PurePath(model).name


def with_interval(figure: Figure) -> str:
    """A share with its interval: ``99 % (98–100 %)``."""
    low, high = percent(figure.low).removesuffix(" %"), percent(figure.high)
    return f"{percent(figure.value)} ({low}–{high})"


def verdict(settings: Sequence[Setting], bar: Bar) -> Verdict:
    """What the records say, in sentences a user can act on."""
    measured = [setting for setting in settings if setting.worst is not None]
    if not measured:
        return Verdict(("Nothing was measured: every cell failed or is not applicable.",))
    meeting = [setting for setting in measured if not setting.shortcomings(bar)]
    sentences = []
    if len(settings) == 1:
        sentences.append(reads(measured[0]))
        if meeting:
            sentences.append(f"This meets the bar: {bar}.")
    elif meeting:
        best = min(meeting, key=_leak)
        count = (
            f"{len(meeting)} of {len(settings)} measured settings {'meets' if len(meeting) == 1 else 'meet'} the bar."
        )
        sentences += [count, f"Least readable: {reads(best)}{_cost(best)}", f"The bar: {bar}."]
    else:
        most, least = max(measured, key=_leak), min(measured, key=_leak)
        sentences += ["No measured setting meets the bar.", f"Most readable: {reads(most)}"]
        if least is not most:
            sentences.append(f"Least readable: {reads(least)}{_cost(least)}")
        sentences.append(f"The bar: {bar}.")
    blind = [setting for setting in measured if not setting.adapted]
    if blind:
        which = "It was" if len(settings) == 1 else f"{len(blind)} of {len(settings)} settings were"
        sentences.append(
            f"{which} tried only by attacks that ignore the defence; low figures there are no evidence of safety. "
            "Add --attack search, and map-beam and actinv for random defences."
        )
    failed = sum(record.config.status == "error" for setting in settings for record in setting.without)
    if failed:
        sentences.append(f"{failed} {'cell' if failed == 1 else 'cells'} could not be measured; see below.")
    return Verdict(sentences)


def reads(setting: Setting) -> str:
    """``The server reads 100 % (99–100 %) of your tokens at cut 2:-2 with defence none, by search.``"""
    if setting.worst is None:
        return f"At {setting.name}, nothing was measured."
    return f"The server reads {_share(setting)} of your tokens at {setting.name}, by {setting.worst.cell.attack}."


def _share(setting: Setting) -> str:
    accuracy = setting.worst.figures.get("token_accuracy") if setting.worst else None
    return with_interval(accuracy) if accuracy else "an unmeasured share"


def _cost(setting: Setting) -> str:
    increase = setting.perplexity_increase
    return "" if increase is None else f" Perplexity rises by {with_interval(increase)}."


def _leak(setting: Setting) -> float:
    return setting.leakage.value if setting.leakage else float("inf")
