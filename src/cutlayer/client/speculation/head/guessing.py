"""The draft head as a speculator: ``head:path=FILE[,depth=N,breadth=N]``.

It sees the states of everything the session verified, prompts included, and keeps its own cache over the same positions. What a
position's slot holds depends on the token there and on what was returned for the one before, so the last token known, which has
not been through the model yet, is already in.

It names its guesses and draws none, at any temperature: a tree can hold several of the likeliest after each token, where one that
was drawn is right as often as the two distributions overlap; and no distribution has to be kept for the sampler.

Notation: T tokens, D hidden size, R tokens of the head's output.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from weakref import WeakKeyDictionary

import msgspec
import torch

from cutlayer.client.speculation.draft import Draft
from cutlayer.client.speculation.head.beam import grow
from cutlayer.client.speculation.head.file import load_head
from cutlayer.prefix import common_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.head.network import DraftHead
    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.models.cache import RollbackCache
    from cutlayer.registry import Spec


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1)]
    depth: Annotated[int, msgspec.Meta(ge=1, le=16)] = 6
    breadth: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8


class HeadSpeculator:
    """See the module.

    Args:
        head: the network.
        turn: held while it runs; its weights are the client's own.
        depth: guesses after one another.
        breadth: guesses beside one another.
    """

    wants_prompt = True
    adaptive = True

    def __init__(self, head: DraftHead, turn: threading.Lock, depth: int = 6, breadth: int = 8) -> None:
        self._head = head
        self._turn = turn
        self._depth = depth
        self._breadth = breadth
        self._cache = head.new_cache()
        self._start = 0
        """Position of the first slot; those before were verified unseen."""
        self._verified: list[int] = []
        self._returned: list[torch.Tensor] = []
        """[D] each, of the positions from `_start` on, as `_verified`."""
        self._read: list[int] = []
        """Tokens of the cache's slots."""

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        known = list(ids[self._start :])
        if self._verified[: len(known) - 1] != known[:-1]:  # another text, whose beginning was not shown
            self._begin(len(ids) - 1)
            return Draft()
        if most < 1 or len(known) < 2:
            return Draft()
        with self._turn, torch.inference_mode():
            features, logits = self._follow(known)
            end = self._cache.position
            try:
                ahead = _Ahead(self._head, self._cache, features)
                vocabulary = self._head.vocabulary
                return grow(logits, vocabulary, ahead, most, self._breadth, self._depth)
            finally:
                self._cache.rollback(end)

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`."""
        if not self._start <= seen.base <= self._start + len(self._verified):
            self._begin(seen.base)
        del self._verified[seen.base - self._start :]
        del self._returned[seen.base - self._start :]
        self._verified += [seen.tokens[row] for row in seen.kept]
        self._returned += [seen.states.returned[row] for row in seen.kept]

    def close(self) -> None:
        """See `Speculator.close`."""

    def _begin(self, position: int) -> None:
        """Forget everything; what is shown next stands at `position`."""
        self._start = position
        self._verified, self._returned, self._read = [], [], []
        self._cache.rollback(0)

    def _follow(self, known: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring the cache to `known`; feature [1, 1, D] and logits [R] of the last position."""
        common = common_length(self._read, known[:-1])
        self._cache.rollback(common)
        del self._read[common:]
        tokens = torch.tensor([known[common:]], device=self._head.vocabulary.device)  # [1, T]
        states = self._returned[max(common - 1, 0) : len(known) - 1]
        if common == 0:
            states = [torch.zeros_like(states[0]), *states]
        before = torch.stack(states)[None].to(tokens.device)  # [1, T, D]
        features, logits = self._head(self._head.inputs(tokens, before, own=False), self._cache, keep=1)
        self._read += known[common:]
        return features[:, -1:], logits[0, -1].float()


class _Ahead:
    """The head going on from its own guesses, level by level.

    Args:
        head: the network.
        cache: its slots up to the last known token; those of guesses are appended.
        features: [1, 1, D] of that token.
    """

    def __init__(self, head: DraftHead, cache: RollbackCache, features: torch.Tensor) -> None:
        self._head = head
        self._cache = cache
        self._features = features
        self._first = cache.position - 1
        """Slot of the level's first row."""

    def __call__(self, guesses: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Guesses, (token, row in the level before) each → logits [N, R] after them."""
        tokens, rows = zip(*guesses, strict=True)
        ids = torch.tensor([tokens], device=self._features.device)  # [1, N]
        inputs = self._head.inputs(ids, self._features[:, list(rows)], own=True)  # [1, N, D]
        base = self._cache.position
        backs = [base + i - (self._first + row) for i, row in enumerate(rows)]
        self._features, logits = self._head(inputs, self._cache, backs=backs)
        self._first = base
        return logits[0].float()  # type: ignore[no-any-return]


class _Head:
    """Sessions of one client share its heads, as they share its layers."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._loaded: WeakKeyDictionary[Trusted, dict[tuple[Path, int], DraftHead]] = WeakKeyDictionary()

    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        chosen = spec.read(_Options)
        head = self._head(Path(chosen.path).expanduser(), trusted)
        return HeadSpeculator(head, trusted.turn, chosen.depth, chosen.breadth)

    def _head(self, path: Path, trusted: Trusted) -> DraftHead:
        version = path, path.stat().st_mtime_ns if path.is_file() else 0
        with self._loading:
            held = self._loaded.setdefault(trusted, {})
            if version not in held:
                held[version] = load_head(path, trusted).folded(getattr(torch, trusted.dtype))
            return held[version]


KIND: Final = _Head()
