"""The speculator released with the published split (Cunningham 2026, arXiv 2602.16760), as a baseline.

Source: coder903/split-inference, `jacobi_server.py`, `generate_stream_lookahead` at 4601c5f. The paper calls it lookahead
decoding; the code keeps a dictionary from ONE token to the (N−1)-grams that followed it, and verifies the first G of them,
which are the OLDEST, as branches of one request. There is no Jacobi window. All n-grams of the prompt are entered, of the answer
only the last one at each step, so those that end within an accepted branch are missed: kept as it is.

Deviations: branches that begin alike share nodes, which changes no answer and saves rows. The tree is always sent
whole, as the released code does. A rollback starts the dictionary afresh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cutlayer.client.speculation.draft import Draft, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    n: Annotated[int, msgspec.Meta(ge=2, le=32)] = 5
    g: Annotated[int, msgspec.Meta(ge=1, le=64)] = 5


class Cunningham:
    """See the module.

    Args:
        n: length of an n-gram, its key included.
        g: branches at most.
    """

    wants_prompt = False
    adaptive = False

    def __init__(self, n: int, g: int) -> None:
        self._n = n
        self._g = g
        self._known: list[int] = []
        self._followers: dict[int, list[tuple[int, ...]]] = {}

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        verified = list(ids[:-1])
        if self._known and verified[: len(self._known)] == self._known:
            self._enter(verified[-self._n :])
        else:
            self._followers = {}
            for end in range(self._n, len(verified) + 1):
                self._enter(verified[end - self._n : end])
        self._known = verified
        branches = self._followers.get(ids[-1], ())
        return merged(Draft.chain(branch, [1.0] * len(branch)) for branch in branches).first(most)

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`. It learns from tokens alone, and `draft` is given those."""

    def close(self) -> None:
        """See `Speculator.close`."""

    def _enter(self, ngram: list[int]) -> None:
        if len(ngram) < self._n:
            return
        known = self._followers.setdefault(ngram[0], [])
        follower = tuple(ngram[1:])
        # Later ones would never be among the first G.
        if len(known) < self._g and follower not in known:
            known.append(follower)


class _Cunningham:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        chosen = spec.read(_Options)
        return Cunningham(chosen.n, chosen.g)


KIND: Final = _Cunningham()
