"""Metrics that ask whether the right token stands at the right position.

Special tokens are left out by position: where the truth has one, the guess is neither right nor wrong. Counting the start
token every model begins with, as some published code does, adds 1/T to any attack.

Notation: T positions, S of them with special tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def scored(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> tuple[list[int], list[int]]:
    """Both sequences at the T − S positions that count.

    Raises:
        InputError: the lengths differ. An attack guesses every position; a shorter guess must not be scored over fewer.
    """
    if len(truth) != len(guess):
        raise InputError(f"a guess of {len(guess)} tokens for {len(truth)}; an attack guesses every position")
    kept = [i for i, token in enumerate(truth) if token not in special]
    return [truth[i] for i in kept], [guess[i] for i in kept]


def token_accuracy(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """Share of positions with the right token.

    Args:
        truth: [T] ids.
        guess: [T] ids.
        special: ids whose positions in the truth do not count.

    Raises:
        InputError: the lengths differ.

    Examples:
        >>> token_accuracy([0, 5, 6, 7], [0, 5, 9, 7], special={0})
        0.6666666666666666
    """
    truth, guess = scored(truth, guess, special)
    if not truth:
        return Unmeasured("no tokens but special ones")
    return sum(a == b for a, b in zip(truth, guess, strict=True)) / len(truth)


def exact_match(
    truth: Sequence[int], guess: Sequence[int], special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """1 if every position that counts has the right token, else 0.

    Raises:
        InputError: the lengths differ.
    """
    truth, guess = scored(truth, guess, special)
    return float(truth == guess) if truth else Unmeasured("no tokens but special ones")
