"""Accuracy on the tokens that carry content: neither stop words nor punctuation.

Function words are the hardest to tell apart in hidden states and the least private; counting them makes a leak look
smaller than it is. The stop words are in ``stop_words.txt``, two hundred English function words.

Footgun: each token is judged by itself. A piece of a longer word that happens to spell a stop word (``in`` of ``insulin``)
counts as one.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from cutlayer.audit.metrics.positional import scored, token_accuracy
from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    Decode = Callable[[Sequence[int]], str]

_PART_OF_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"
_PUNCTUATION: Final = frozenset(
    ["Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "Zl", "Zp", "Zs", "Cc", "Cf"]
)
"""Unicode categories of punctuation, currency and mathematical signs, blanks and control characters."""


def is_content(piece: str) -> bool:
    """Whether a decoded token carries content.

    Examples:
        >>> [is_content(piece) for piece in (" insulin", " The", "?!", "42", "'s")]
        [True, False, False, True, False]
    """
    if _PART_OF_CHARACTER in piece:  # bytes of a letter outside ASCII, or of a picture
        return True
    spoken = "".join(sign for sign in piece.lower() if unicodedata.category(sign) not in _PUNCTUATION)
    return bool(spoken) and spoken not in stop_words()


def content_accuracy(
    truth: Sequence[int], guess: Sequence[int], decode: Decode, special: Collection[int] = frozenset()
) -> float | Unmeasured:
    """`token_accuracy` at the positions whose true token carries content.

    Args:
        truth: [T] ids.
        guess: [T] ids.
        decode: ids → text.
        special: ids whose positions in the truth do not count.

    Raises:
        InputError: the lengths differ.
    """
    kept, guessed = scored(truth, guess, special)
    content = content_positions(kept, decode)
    if not content:
        return Unmeasured("no tokens but stop words and punctuation")
    return token_accuracy([kept[i] for i in content], [guessed[i] for i in content])


def content_positions(ids: Sequence[int], decode: Decode) -> list[int]:
    """Positions of tokens that carry content."""
    return [i for i, token in enumerate(ids) if is_content(decode([token]))]


@cache
def stop_words() -> frozenset[str]:
    """English function words, lower case."""
    return frozenset(files("cutlayer.audit.metrics").joinpath("stop_words.txt").read_text(encoding="utf-8").split())
