"""From embeddings that match the observation to tokens: what the gradient attacks have in common.

Descent, then the nearest tokens, then (optionally) calibration. Wherever there are several guesses – before and after
calibration, after few steps and many – the likeliest under the public law of the defence is kept, never the truest.

Early stopping is an attack on defences that perturb directions to which the hidden states are insensitive: few steps do not
move along them. So several numbers of steps are worth trying.

Notation: B prompts, T positions, D hidden size, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import torch

from cutlayer.attacks.attack import Guess
from cutlayer.attacks.calibrate import calibrate, log_likelihood
from cutlayer.attacks.descent import descend
from cutlayer.attacks.table import top_confidence
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.attacks.attack import Observation
    from cutlayer.attacks.calibrate import Score
    from cutlayer.attacks.descent import Descended, Recipe
    from cutlayer.attacks.matching import EmbeddingForward, Lookup
    from cutlayer.attacks.prior import Prior
    from cutlayer.defences.channel import Channel
    from cutlayer.models.parts import Head

Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_SHOWN: Final = 64


class Calibration(NamedTuple):
    """How candidates are tried."""

    score: Score
    neighbours: int
    """Per position, from the table."""
    prior: Prior | None
    speculated: int
    """Per position, from the language model."""


class Setting(NamedTuple):
    """What a prepared gradient attack knows."""

    head: Head
    forward: EmbeddingForward
    lookup: Lookup
    """From embeddings to tokens."""
    channel: Channel


class MatchingReader:
    """Reads prompts by matching hidden states.

    Args:
        setting: model and defence.
        recipe: what is minimised, and how.
        stops: numbers of steps after which a guess is made, ascending.
        calibration: None takes the nearest tokens as they are.
        batch: prompts optimised at once.
    """

    def __init__(
        self, setting: Setting, recipe: Recipe, stops: Sequence[int], calibration: Calibration | None, batch: int
    ) -> None:
        self._setting = setting
        self._recipe = recipe
        self._stops = stops
        self._calibration = calibration
        self._batch = batch

    def read(self, observation: Observation) -> Guess:
        """See `Reader.read`."""
        return self.read_many([observation])[0]

    def read_many(self, observations: Sequence[Observation]) -> list[Guess]:
        """Guess several prompts, in batches: much cheaper than one after the other."""
        return [
            self._likeliest(observation, list(guesses.values()))
            for observation, guesses in zip(observations, self._sweeps(observations), strict=True)
        ]

    def sweep(self, observation: Observation) -> dict[int, Guess]:
        """The guess after each of the numbers of steps."""
        return self._sweeps([observation])[0]

    def _sweeps(self, observations: Sequence[Observation]) -> list[dict[int, Guess]]:
        order = sorted(range(len(observations)), key=lambda i: observations[i].released.shape[1])  # little padding
        guesses: list[dict[int, Guess]] = [{} for _ in order]
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            batch = [observations[i] for i in places]
            setting = self._setting
            found = descend(self._recipe, setting.forward, setting.lookup, setting.channel, batch, self._stops)
            for stop in self._stops:
                for i, guess in zip(places, self._guesses(batch, found, stop), strict=True):
                    guesses[i][stop] = guess
        return guesses

    def _guesses(self, observations: Sequence[Observation], found: Sequence[Descended], stop: int) -> list[Guess]:
        """One per prompt, from the embeddings after `stop` steps."""
        embeddings = [one.embeddings[stop] for one in found]
        nearest = [self._nearest(place, min(stop, one.steps)) for place, one in zip(embeddings, found, strict=True)]
        if self._calibration is None:
            return nearest
        score, neighbours, prior, speculated = self._calibration
        head, _, lookup, _ = self._setting
        readings = calibrate(head, lookup, score, observations, embeddings, neighbours, prior, speculated)
        chosen = []
        for observation, plain, reading in zip(observations, nearest, readings, strict=True):
            effort = {**plain.effort, "candidates": float(reading.candidates)}
            tried = Guess(reading.tokens, reading.confidence, effort)
            chosen.append(self._likeliest(observation, [plain._replace(effort=effort), tried]))
        return chosen

    def _nearest(self, embeddings: torch.Tensor, steps: int) -> Guess:
        forward, lookup = self._setting.forward, self._setting.lookup
        best = lookup(embeddings, min(_SHOWN, len(forward.table)))
        return Guess(best.tokens[:, 0].cpu(), top_confidence(best.cosine).cpu(), {"steps": float(steps)})

    def _likeliest(self, observation: Observation, guesses: list[Guess]) -> Guess:
        """The guess that best explains the observation; the last of several that do so equally."""
        if len(guesses) == 1:
            return guesses[0]
        device = self._setting.forward.table.device
        states = self._setting.forward.of_tokens([guess.tokens.to(device) for guess in guesses])
        scores = torch.tensor([log_likelihood(self._setting.channel, observation, rows) for rows in states])
        return guesses[int(torch.nonzero(scores == scores.max())[-1])]


def read_stops(text: str) -> list[int]:
    """Numbers of steps given as ``50+100+300``, ascending.

    Raises:
        InputError: not of that form.
    """
    parts = text.split("+")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"stops={text}: give numbers of steps joined by +, each at least 1, as in 50+100+300")
    return sorted({int(part) for part in parts})
