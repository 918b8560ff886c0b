"""A small local model with the same vocabulary as a drafter: ``model:path=DIRECTORY[,depth=N,beside=N]``.

Source: speculative decoding (Leviathan et al. 2023, arXiv 2211.17192), with drafts that are named greedily and never drawn, so
that verification stays exact at any temperature. The draft is one chain of the drafter's likeliest tokens; beside each of them
stand its next likeliest, which cost no further pass. How far its probabilities are to be believed is learned, see `mixture.py`.

Notation: T tokens, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.client.speculation.candidates import likeliest
from cutlayer.client.speculation.draft import ROOT, Draft
from cutlayer.client.speculation.drafted import Drafted
from cutlayer.client.speculation.mixed import Mixed
from cutlayer.client.speculation.source import Weighed
from cutlayer.errors import InputError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.family import read_config
from cutlayer.models.fill import fill
from cutlayer.models.locate import locate
from cutlayer.models.parts import Part, empty_model
from cutlayer.prefix import common_length
from cutlayer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.client.speculation.speculator import Speculator, Verified
    from cutlayer.client.trusted import Trusted
    from cutlayer.models.cache import RollbackCache
    from cutlayer.registry import Spec

_FLOOR: Final = 0.05
"""Chance of reaching a node below which another pass for what follows it does not pay."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1)]
    depth: Annotated[int, msgspec.Meta(ge=1, le=32)] = 8
    beside: Annotated[int, msgspec.Meta(ge=0, le=8)] = 2


class Drafter(Part):
    """The whole of a small model."""

    def forward(self, ids: torch.Tensor, cache: RollbackCache) -> torch.Tensor:
        """Token ids [1, T] → logits after the last one [V]."""
        output = self._run(self.shell, cache, ids.shape[1], (), input_ids=ids, logits_to_keep=1)
        return output.logits[0, -1].float()  # type: ignore[attr-defined, no-any-return]


class DraftModel:
    """Trees of a small model, as it rates them itself.

    Args:
        drafter: the model.
        vocabulary: V of the model that verifies; tokens beyond are never named.
        turn: held during a pass.
        depth: tokens after one another, each a pass.
        beside: further tokens beside each of them.
    """

    wants_prompt = False
    adaptive = True

    def __init__(
        self, drafter: Drafter, vocabulary: int, turn: threading.Lock, depth: int = 8, beside: int = 2
    ) -> None:
        self._drafter = drafter
        self._vocabulary = vocabulary
        self._turn = turn
        self._depth = depth
        self._beside = beside
        self._cache = drafter.new_cache()
        self._held: list[int] = []

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """See `Speculator.draft`."""
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        last, worth, path = ROOT, 1.0, list(ids)
        for _ in range(self._depth):
            if worth < _FLOOR or len(tokens) >= most:
                break
            best, p = likeliest(self._after(path)[None], 1 + self._beside)
            named = [
                (token, chance) for token, chance in zip(best[0].tolist(), p[0].tolist(), strict=True) if chance > 0
            ]
            parent, last = last, len(tokens)
            tokens += [token for token, _ in named]
            parents += [parent] * len(named)
            chances += [chance for _, chance in named]
            path.append(tokens[last])
            worth *= chances[last]
        return Draft(tuple(tokens), tuple(parents), tuple(chances)).first(most)

    def observe(self, seen: Verified) -> None:
        """See `Speculator.observe`. It learns nothing."""

    def close(self) -> None:
        """See `Speculator.close`."""

    def _after(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits [V] after `ids`; what the cache holds of them is not run again."""
        common = common_length(self._held, ids[:-1])
        with self._turn, torch.inference_mode():
            self._cache.rollback(common)
            device = self._drafter.shell.device
            logits: torch.Tensor = self._drafter(torch.tensor([ids[common:]], device=device), self._cache).cpu()
        self._held = list(ids)
        return logits[: self._vocabulary]


@lru_cache(maxsize=1)
def load_drafter(directory: Path, dtype: torch.dtype) -> Drafter:
    """The model of a directory, loaded once for all sessions.

    Raises:
        UnsupportedModelError: it is of no known family.
        WeightsError: the checkpoint is incomplete.
    """
    config = read_config(directory)
    shell = empty_model(config, dtype)
    opened = fill(shell, Checkpoint(directory), "cpu")
    return Drafter(shell.eval().requires_grad_(False), config.num_hidden_layers, opened)


class _Model:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        chosen = spec.read(_Options)
        directory = locate(chosen.path)
        # Ids would mean other tokens, and every guess be wrong.
        if _vocabulary(Tokenizer(directory)) != _vocabulary(trusted.tokenizer):
            raise InputError(f"the model in {directory} has another vocabulary than the one it is to draft for")
        vocabulary = trusted.parts.head.embedding().shape[0]
        drafter = load_drafter(directory, getattr(torch, trusted.dtype))
        model = DraftModel(drafter, vocabulary, trusted.turn, chosen.depth, chosen.beside)
        return Mixed([Weighed(Drafted(model), 0.9, 0.0)], 0.0)


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer.library_tokenizer.get_vocab()
    return vocabulary


KIND: Final = _Model()
