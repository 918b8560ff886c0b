"""Somebody who sees the lengths of messages, as TLS shows them, and names the prompt: the attack of `padding.py`.

They have seen every prompt answered once, know which trace was which, and take a new trace for the one that resembles it most.
Nothing is learned or tuned. Where several resemble it equally, one of them is named at random: constant traces score chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

import numpy as np

_QUANTILES: Final = np.linspace(0, 1, 33)


class Trace(NamedTuple):
    """One answer as it crossed the line. Of the messages only those from the client: what comes back has as many rows."""

    prompt: str
    type: str
    asking: int
    """Bytes of the messages that brought the prompt."""
    lengths: list[int]
    """Of the messages after it, in bytes, in order."""
    kept: list[int]
    """Rows of every step that were right. Not for an onlooker's eyes: the server's."""

    @property
    def later(self) -> list[int]:
        """Lengths without the first, which is shorter for everybody: it has nothing to keep. It would tell their number."""
        return self.lengths[1:]


Distance = Callable[[Trace, Trace], float]


def _in_order(a: Sequence[int], b: Sequence[int]) -> float:
    """One by one, as far as the shorter one goes: how many there are does not count, as long as there are any."""
    length = min(len(a), len(b))
    if not length:
        return math.inf
    return float(np.abs(np.subtract(a[:length], b[:length])).mean())


def _unordered(a: Sequence[int], b: Sequence[int]) -> float:
    """Whatever the order and the number: distance of the two distributions."""
    if not a or not b:
        return math.inf
    return float(np.abs(np.quantile(a, _QUANTILES) - np.quantile(b, _QUANTILES)).mean())


def _whole(a: Sequence[int], b: Sequence[int]) -> float:
    """One by one; one that the other has not counts whole."""
    return float(sum(abs(one - other) for one, other in zip_longest(a, b, fillvalue=0)))


LOOKS: Final[Mapping[str, Distance]] = {
    "prompt": lambda one, other: abs(one.asking - other.asking),
    "answer": lambda one, other: _whole(one.lengths, other.lengths),
    "steps": lambda one, other: abs(len(one.lengths) - len(other.lengths)),
    "lengths": lambda one, other: _in_order(one.later, other.later),
    "lengths_unordered": lambda one, other: _unordered(one.later, other.later),
    "kept": lambda one, other: _in_order(one.kept, other.kept),
    "kept_unordered": lambda one, other: _unordered(one.kept, other.kept),
}
"""What is looked at: the prompt's bytes; the messages of the answer; of those the number alone, and the lengths alone; and what
an onlooker cannot see but the server can, how many rows each step kept."""


def named(look: Distance, seen: Sequence[Trace], new: Sequence[Trace]) -> list[float]:
    """For every new trace the chance that its prompt is named."""
    return [_share(look, trace, seen, lambda one, other: one.prompt == other.prompt) for trace in new]


def type_named(look: Distance, seen: Sequence[Trace], new: Sequence[Trace]) -> list[float]:
    """For every new trace the chance that its type of text is named by one who has seen all prompts but this."""
    return [
        _share(
            look,
            trace,
            [other for other in seen if other.prompt != trace.prompt],
            lambda one, other: one.type == other.type,
        )
        for trace in new
    ]


def _share(look: Distance, trace: Trace, seen: Sequence[Trace], same: Callable[[Trace, Trace], bool]) -> float:
    """Of the nearest, how many are the same."""
    distances = [look(trace, other) for other in seen]
    nearest = [other for other, distance in zip(seen, distances, strict=True) if distance == min(distances)]
    return sum(same(trace, other) for other in nearest) / len(nearest)
