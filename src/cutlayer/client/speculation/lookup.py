"""Suffix lookup: what followed the last tokens where they occurred before, in prompt, conversation and earlier answers.

Source: prompt lookup decoding (Saxena 2023) and SuffixDecoding (arXiv 2411.04975). The longest match comes first, of equally long
ones the newest; how far a draft goes is decided by the chances, which grow with the length of the match and are learned online.

Deviations: hashed n-grams in place of a suffix tree; chances by the length of the match in place of counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.calibration import Calibration
from cutlayer.client.speculation.growth import grow
from cutlayer.client.speculation.suffixes import Suffixes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec


class Lookup:
    wants_prompt = False
    wants_states = False

    def __init__(self) -> None:
        self._suffixes = Suffixes()

    def propose(self, context: tuple[int, ...]) -> list[tuple[int, float]]:
        """Tokens that may follow, with their chances."""
        left, proposals = 1.0, []
        for match in self._suffixes.matches(context):
            chance = left * _CHANCES[min(match.length, len(_CHANCES) - 1)]
            proposals.append((match.token, chance))
            left -= chance
        return proposals

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        self._suffixes.follow(ids)
        return grow(ids, self.propose, most)

    def observe(self, seen: Verified) -> None: ...
    def close(self) -> None: ...


_CHANCES: Final = (0.0, 0.1, 0.3, 0.45, 0.55, 0.6, 0.65, 0.7, 0.75, 0.78, 0.8, 0.85, 0.88, 0.9, 0.9, 0.9, 0.92)


class _Lookup:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        return Lookup()


KIND: Final = _Lookup()
