"""From guesses to the figures and samples of a record. Baseline and attack are scored on the same prompts.

Seeds are averaged within a prompt before anything else: two passes over one prompt are not two prompts.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from cutlayer.audit.cell_record import PRIOR
from cutlayer.audit.metrics.scores import SampleScores, score
from cutlayer.audit.metrics.summary import METRICS, advantages, summarise
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, median

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.attacks.attack import Guess
    from cutlayer.audit.material import Item
    from cutlayer.text.tokenizer import Tokenizer

_ADVANTAGES: Final = {
    "token_accuracy": "advantage",
    "content_accuracy": "content_advantage",
    "entity_recall": "entity_advantage",
}
"""Metric → name of its advantage over the baseline."""
_OF_BASELINE: Final = ("token_accuracy", "content_accuracy", "entity_recall")


class Outcome(NamedTuple):
    """What was found, and why what is missing is."""

    figures: dict[str, Figure]
    unmeasured: dict[str, str]

    def and_also(self, other: Outcome) -> Outcome:
        """Both; the other's figures take the place of reasons for their lack."""
        unmeasured = {
            name: why for name, why in {**self.unmeasured, **other.unmeasured}.items() if name not in other.figures
        }
        return Outcome({**self.figures, **other.figures}, unmeasured)


class _Row(NamedTuple):
    id: str
    seed: int
    scores: SampleScores
    prior: SampleScores
    seconds: float
    effort: dict[str, float]
    texts: tuple[str, str]


def check_packages() -> None:
    """Find out before hours of work, not after, whether everything that scores is installed.

    Raises:
        InputError: something is not.
    """
    try:
        score([0], [0], lambda ids: "one two three four")
    except ImportError as error:
        raise InputError(f"scoring needs the package {error.name}; run: pip install 'cutlayer[audit]'") from None


def scores_of(tokenizer: Tokenizer, item: Item, read: Sequence[int]) -> SampleScores:
    """All metrics of one guess at a prompt."""
    secrets = item.entities if item.canary else ()
    return score(item.ids, read, tokenizer.decode, tokenizer.special_ids, item.entities, secrets)


class Scoring:
    """Scores of one cell, gathered prompt by prompt.

    Args:
        tokenizer: of the model.
        keep_texts: whether the columns hold prompts and guesses.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_texts: bool) -> None:
        self._tokenizer = tokenizer
        self._keep_texts = keep_texts
        self._rows: list[_Row] = []

    def add(self, item: Item, seed: int, guess: Guess, seconds: float, baseline: Sequence[int]) -> None:
        """Score one guess.

        Args:
            item: the prompt.
            seed: of this pass.
            guess: what the attack read.
            seconds: it took.
            baseline: what a language model guesses blindly.

        Raises:
            InputError: the guess has another length than the prompt.
        """
        read: list[int] = guess.tokens.tolist()
        texts = (self._tokenizer.decode(item.ids), self._tokenizer.decode(read)) if self._keep_texts else ("", "")
        effort = {name: float(value) for name, value in guess.effort.items() if math.isfinite(value)}
        self._rows.append(
            _Row(
                item.id,
                seed,
                scores_of(self._tokenizer, item, read),
                scores_of(self._tokenizer, item, baseline),
                seconds,
                effort,
                texts,
            )
        )

    def outcome(self) -> Outcome:
        """Figures over prompts."""
        scores, prior = self._by_prompt("scores"), self._by_prompt("prior")
        found: dict[str, Figure | Unmeasured] = summarise(scores)
        over = advantages(scores, prior)
        blind = summarise(prior)
        found |= {name: over[metric] for metric, name in _ADVANTAGES.items()}
        found |= {f"{PRIOR}{metric}": blind[metric] for metric in _OF_BASELINE}
        found["seconds_per_prompt"] = median([row.seconds for row in self._rows], "s")
        for name in sorted({name for row in self._rows for name in row.effort}):
            found[f"effort_{name}"] = median([row.effort[name] for row in self._rows if name in row.effort], name)
        return Outcome(
            {name: figure for name, figure in found.items() if isinstance(figure, Figure)},
            {name: figure.reason for name, figure in found.items() if isinstance(figure, Unmeasured)},
        )

    def columns(self) -> dict[str, list[Any]]:
        """Raw scores, one row per prompt and seed."""
        rows = self._rows
        columns: dict[str, list[Any]] = {"id": [row.id for row in rows], "seed": [row.seed for row in rows]}
        for name in ("tokens", "content_tokens", *METRICS):
            columns[name] = [getattr(row.scores, name) for row in rows]
        for name in _OF_BASELINE:
            columns[f"{PRIOR}{name}"] = [getattr(row.prior, name) for row in rows]
        columns["seconds"] = [round(row.seconds, 6) for row in rows]
        for name in sorted({name for row in rows for name in row.effort}):
            columns[f"effort_{name}"] = [row.effort.get(name) for row in rows]
        if self._keep_texts:
            columns["truth"] = [row.texts[0] for row in rows]
            columns["guess"] = [row.texts[1] for row in rows]
        return columns

    def _by_prompt(self, which: str) -> list[SampleScores]:
        grouped: dict[str, list[SampleScores]] = {}
        for row in self._rows:
            grouped.setdefault(row.id, []).append(getattr(row, which))
        return [_averaged(scores) for scores in grouped.values()]


def _averaged(scores: Sequence[SampleScores]) -> SampleScores:
    """The mean of every metric over the passes that have it."""
    if len(scores) == 1:
        return scores[0]
    return msgspec.structs.replace(scores[0], **{name: _mean(getattr(one, name) for one in scores) for name in METRICS})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
