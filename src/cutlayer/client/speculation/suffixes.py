"""Where the last tokens occurred before: an index of n-grams over everything one session has seen.

Texts are appended to and never moved. When ids are not a continuation of those seen so far (a conversation was rolled back,
another one began), the part taken back stays as a text of its own, for it may be said again. Entries of positions that have
changed since are told by comparing tokens, so nothing needs to be removed from the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.prefix import common_length

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS: Final = (8, 4, 2)
"""Lengths of the indexed n-grams."""
LONGEST: Final = 24
"""Matches are not followed further back than this."""
_RECENT: Final = 6
"""Occurrences kept per n-gram."""
_CAPACITY: Final = 1 << 16
"""Tokens of other texts held; when there are more, the oldest are forgotten until half as many are left."""


class Match(NamedTuple):
    """An earlier occurrence of the last tokens."""

    length: int
    token: int
    """What followed there."""


class Suffixes:
    """See the module."""

    def __init__(self) -> None:
        self._texts: list[list[int]] = [[]]
        self._places: dict[tuple[int, ...], list[tuple[list[int], int]]] = {}
        self._held = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Make the current text equal to `ids`."""
        current = self._texts[-1]
        common = _common(current, ids)
        if common < len(current):
            start = max(0, common - LONGEST)
            self._texts.insert(-1, [])
            self._append(self._texts[-2], current[start:])
            self._held -= len(current) - common
            del current[common:]
        self._append(current, ids[common:])
        if self._held - len(current) > _CAPACITY:
            self._forget()

    def matches(self, context: tuple[int, ...]) -> list[Match]:
        """Occurrences of the end of `context`, distinct in what followed: longest first, of equals the newest."""
        found: dict[int, int] = {}
        for size in KEYS:
            for text, at in reversed(self._places.get(context[-size:], ())):
                # The place is what followed the n-gram; its text may have been rolled back since.
                if at >= len(text):
                    continue
                length = _length(text, at, context)
                if length >= size and length > found.get(text[at], 0):
                    found[text[at]] = length
        return sorted((Match(length, token) for token, length in found.items()), key=lambda match: -match.length)

    def _append(self, text: list[int], tokens: Sequence[int]) -> None:
        for token in tokens:
            for size in KEYS:
                if len(text) >= size:
                    places = self._places.setdefault(tuple(text[-size:]), [])
                    places.append((text, len(text)))
                    del places[:-_RECENT]
            text.append(token)
        self._held += len(tokens)

    def _forget(self) -> None:
        """Keep the newest texts, the current one whole."""
        *others, current = self._texts
        kept = [current]
        for text in reversed(others):
            if sum(map(len, kept[1:])) + len(text) > _CAPACITY // 2:
                break
            kept.append(text)
        self._texts, self._places, self._held = [], {}, 0
        for text in reversed(kept):
            self._texts.append([])
            self._append(self._texts[-1], text)


def _common(one: list[int], other: Sequence[int]) -> int:
    if list(other[: len(one)]) == one:  # nearly always, and much faster than asking token by token
        return len(one)
    return common_length(one, other)


def _length(text: list[int], at: int, context: tuple[int, ...]) -> int:
    """How many tokens before `at` equal the end of `context`."""
    limit = min(at, len(context), LONGEST)
    return next((n for n in range(limit) if text[at - 1 - n] != context[-1 - n]), limit)
