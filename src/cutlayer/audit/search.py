"""Find any of many byte patterns in captured frames, at every byte offset.

One pass per word width: the first eight (four, for short patterns) bytes of all patterns are looked up as integers at all
offsets at once; what matches is compared in full. Thousands of patterns cost about as much as one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cutlayer.audit.needles import Needle

_WIDTHS: Final = (8, 4)


class Hit(NamedTuple):
    """A pattern that was found."""

    what: str
    """The needle's description."""
    offset: int
    """Byte offset within the data searched."""


class Haystack(NamedTuple):
    """Data to search."""

    label: str
    data: bytes


class Searcher:
    """Looks for all needles at once.

    Args:
        needles: patterns of at least four bytes.

    Raises:
        InputError: a pattern is shorter.
    """

    def __init__(self, needles: Iterable[Needle]) -> None:
        self._by_key: dict[int, dict[int, list[Needle]]] = {width: defaultdict(list) for width in _WIDTHS}
        self.lengths: dict[int, int] = defaultdict(int)
        """Pattern length → number of patterns."""
        for needle in dict.fromkeys(needles):
            width = next((width for width in _WIDTHS if len(needle.data) >= width), None)
            if width is None:
                raise InputError(f"a pattern of {len(needle.data)} bytes ({needle.what}) is too short to search for")
            self._by_key[width][int.from_bytes(needle.data[:width], "little")].append(needle)
            self.lengths[len(needle.data)] += 1
        self._keys = {width: np.sort(np.fromiter(found, f"<u{width}")) for width, found in self._by_key.items()}

    @property
    def count(self) -> int:
        """How many different patterns."""
        return sum(self.lengths.values())

    def accidents(self, searched_bytes: int) -> float:
        """Expected number of hits in so many random bytes."""
        return sum(number * searched_bytes * 256.0**-length for length, number in self.lengths.items())

    def find(self, data: bytes) -> list[Hit]:
        """All hits, by offset."""
        hits = []
        for width, keys in self._keys.items():
            if not len(keys):
                continue
            for shift in range(width):
                words = np.frombuffer(
                    data, f"<u{width}", count=max(0, (len(data) - shift) // width), offset=min(shift, len(data))
                )
                places = np.minimum(np.searchsorted(keys, words), len(keys) - 1)
                for index in np.nonzero(keys[places] == words)[0]:
                    offset = shift + int(index) * width
                    alike = self._by_key[width][int(words[index])]
                    hits += [Hit(needle.what, offset) for needle in alike if data.startswith(needle.data, offset)]
        return sorted(hits, key=lambda hit: hit.offset)


def search(haystacks: Iterable[Haystack], needles: Iterable[Needle]) -> tuple[list[str], Searcher, int]:
    """Look for all needles in all haystacks.

    Returns:
        (where what was found, in words; the searcher; bytes searched). Each kind of pattern is named once per haystack.
    """
    searcher = Searcher(needles)
    found: dict[str, None] = {}
    size = 0
    for haystack in haystacks:
        size += len(haystack.data)
        kinds: set[str] = set()
        for hit in searcher.find(haystack.data):
            if hit.what not in kinds:
                kinds.add(hit.what)
                found[f"{hit.what} in {haystack.label} at byte {hit.offset}"] = None
    return list(found), searcher, size
