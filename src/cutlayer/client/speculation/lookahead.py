"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057), as a baseline: Jacobi trajectories yield n-grams, which are verified.

Source: hao-ai-lab/LookaheadDecoding, `lade/decoding.py`, `jacobi_greedy_search_multilevel` at 0e9f02d. One pass holds

* the window: W columns of N−1 levels. Level 0 of column 0 is the last known token, and level 0 of the others goes on from it as a
  chain; the later levels of a column hang below its level 0. Of level l the model is asked what comes after, given level 0 up
  to its column and levels 1 … l of its column. The answers below the last level become the new last level and the others
  move up one, which is one Jacobi iteration. Each column with its answer is an N-gram for the pool;
* up to G N-grams of the pool that begin with the last known token.

All of it is a tree, so parent indices describe it and no mask travels. Positions are the paper's: depth below the last token.

Notation: W window columns, N n-gram length, G guesses, T rows.

Deviations: nodes with the same past are shared (they are the same computation). A token of the window that turns out right is
kept like any other guess; the paper keeps guesses of the pool alone. The tree is always sent whole; where it had to be cut,
the window waits. The first level 0 is drawn from the prompt with a fixed seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.client.speculation.draft import Draft, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec

_POOL: Final = 1 << 15
"""Keys of the pool; it starts afresh when there are more."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    prompt: bool = True
    w: Annotated[int, msgspec.Meta(ge=1, le=64)] = 7
    n: Annotated[int, msgspec.Meta(ge=3, le=16)] = 5
    g: Annotated[int, msgspec.Meta(ge=0, le=64)] = 7


class Lookahead:
    """See the module.

    Args:
        w: columns of the window.
        n: length of an n-gram, its key included.
        g: n-grams of the pool verified at once, and kept per key.
        prompt: enter the n-grams of prompt and answer as well, the stronger of the paper's two settings.
    """

    wants_prompt = False
    adaptive = False

    def __init__(self, w: int, n: int, g: int, prompt: bool = True) -> None:
        self._columns = w
        self._n = n
        self._guesses = g
        self._levels: list[list[int]] = []
        """Level 0 of columns 1 …, then the later levels of all columns, as far as there are any yet."""
        self._pool: dict[int, list[tuple[int, ...]]] = {}
        self._prompt = prompt
        self._entered = 0
        self._last = -1

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        if not self._levels:
            generator = torch.Generator().manual_seed(0)
            # Each of the N−2 steps that fill the levels uses up one token of level 0.
            drawn = torch.randint(len(ids), (self._columns + self._n - 3,), generator=generator)
            self._levels = [[ids[at] for at in drawn.tolist()]]
        self._last = ids[-1]
        if self._prompt:
            self._enter(ids)
        guesses = self._pool.get(self._last, ()) if self._full else ()
        paths = [*(self._path(column) for column in range(self._width)), *guesses]
        return merged(Draft.chain(path, [1.0] * len(path)) for path in paths).first(most)

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`: one Jacobi iteration."""
        rows = {(parent, token): row for row, (parent, token) in enumerate(zip(seen.parents, seen.tokens, strict=True))}
        if not self._levels or seen.tokens[0] != self._last:
            return  # rows of a prompt
        ends: list[int] = []
        for column in range(self._width):
            row: int | None = 0
            for token in self._path(column):
                row = None if row is None else rows.get((row, token))
            if row is None:
                return
            ends.append(row)
        answers: list[int] = seen.logits[ends].argmax(-1).tolist()  # [W]
        if self._full:
            for column, answer in enumerate(answers):
                key = self._last if column == 0 else self._levels[0][column - 1]
                self._collect(key, (*(level[column] for level in self._levels[1:]), answer))
            self._levels = [self._levels[1][1:], *self._levels[2:], answers]
        else:
            # The first pass has no level below level 0 of column 0; its answer is what was just said.
            self._levels = [self._levels[0][1:], *(level[1:] for level in self._levels[1:]), answers[1:]]

    def close(self) -> None:
        """See `Speculator.close`."""

    @property
    def _full(self) -> bool:
        return len(self._levels) == self._n - 1

    @property
    def _width(self) -> int:
        return len(self._levels[0]) + 1

    def _path(self, column: int) -> list[int]:
        """Tokens below the last one that lead to the last level of a column."""
        return [*self._levels[0][:column], *(level[column] for level in self._levels[1:])]

    def _enter(self, ids: Sequence[int]) -> None:
        """Collect the n-grams that have come to `ids` since the last time."""
        first = max(0, min(self._entered, len(ids)) - self._n + 1)
        for at in range(first, len(ids) - self._n + 1):
            self._collect(ids[at], tuple(ids[at + 1 : at + self._n]))
        self._entered = len(ids)

    def _collect(self, key: int, follower: tuple[int, ...]) -> None:
        """Enter an n-gram; of those of a key the G newest stay, the newest last."""
        if key not in self._pool and len(self._pool) == _POOL:
            self._pool.clear()
        known = self._pool.setdefault(key, [])
        if follower in known:
            known.remove(follower)
        known.append(follower)
        del known[: -self._guesses or None]


class _Lookahead:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        chosen = spec.read(_Options)
        return Lookahead(chosen.w, chosen.n, chosen.g, chosen.prompt)


KIND: Final = _Lookahead()
