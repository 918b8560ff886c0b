"""Names, numbers, drugs, secrets: was the part of a prompt that identifies someone read?

Texts without entities are unmeasured. Some published code gives them 1.0, which hides everything in the average.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cutlayer.audit.metrics.positional import scored
from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    Decode = Callable[[Sequence[int]], str]


def entity_recall(entities: Sequence[str], truth: str, guess: str) -> float | Unmeasured:
    """Share of the entities in the truth that stand in the guess verbatim, as whole words, wherever.

    Args:
        entities: of the prompt. Those that are not in `truth`, because it was cut, do not count.
        truth: what was sent.
        guess: what was read.

    Examples:
        >>> entity_recall(["Ann Ray", "4711"], "Ann Ray has 4711.", "Ann Ray has 4712.")
        0.5
    """
    there = [entity for entity in entities if entity in truth]
    if not there:
        return Unmeasured("the text has no entities")
    return sum(re.search(rf"(?<!\w){re.escape(entity)}(?!\w)", guess) is not None for entity in there) / len(there)


def canary_exact_match(
    secrets: Sequence[str],
    truth: Sequence[int],
    guess: Sequence[int],
    decode: Decode,
    special: Collection[int] = frozenset(),
) -> float | Unmeasured:
    """Share of planted secrets whose every token was read, each at its position.

    Args:
        secrets: of the prompt. Those that are not in the truth's text, because it was cut, do not count.
        truth: [T] ids.
        guess: [T] ids.
        decode: ids → text.
        special: ids whose positions in the truth do not count.

    Raises:
        InputError: the lengths differ.
    """
    kept, guessed = scored(truth, guess, special)
    spans = [span for secret in secrets if (span := _span(secret, kept, decode)) is not None]
    if not spans:
        return Unmeasured("the text has no planted secrets")
    return sum(kept[span] == guessed[span] for span in spans) / len(spans)


def _span(secret: str, ids: Sequence[int], decode: Decode) -> slice | None:
    """The fewest positions whose text holds the secret's first occurrence."""
    stop = next((i for i in range(1, len(ids) + 1) if secret in decode(ids[:i])), None)
    if stop is None:
        return None
    start = next(i for i in range(stop - 1, -1, -1) if secret in decode(ids[i:stop]))
    return slice(start, stop)
