"""A toy model and the smallest loop that verifies drafts with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from cutlayer.client.speculation.speculator import States, Verified
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

VOCABULARY = 23
NO_STATES = States(torch.empty(0), torch.empty(0))


class Decoded(NamedTuple):
    """An answer and what it took."""

    tokens: list[int]
    trips: int


class Toy:
    """The next token depends on the last two, so that answers run into loops, as greedy answers do."""

    def __init__(self, seed: int = 0) -> None:
        self._logits = 3 * torch.randn(
            VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)
        )

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """[V]"""
        return self._logits[ids[-2] if len(ids) > 1 else 0, ids[-1]]

    def sequential(self, prompt: Sequence[int], count: int) -> list[int]:
        """The greedy answer, one token at a time."""
        ids = list(prompt)
        while len(ids) < len(prompt) + count:
            ids.append(int(self.logits(ids).argmax()))
        return ids[len(prompt) :]

    def verify(self, ids: Sequence[int], draft: Any) -> tuple[Verified, list[int]]:
        """One round trip after `ids`: what it showed, and the tokens it brought."""
        tokens, parents = [ids[-1], *draft.tokens], [-1, *(parent + 1 for parent in draft.parents)]
        paths: list[list[int]] = []
        children: dict[tuple[int, int], int] = {}
        for row, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            assert parent < row
            assert 0 <= token < VOCABULARY
            assert (parent, token) not in children
            children[parent, token] = row
            paths.append([*(ids[:-1] if parent < 0 else paths[parent]), token])
        logits = torch.stack([self.logits(path) for path in paths])
        kept, brought = [0], [int(logits[0].argmax())]
        while (kept[-1], brought[-1]) in children:
            kept.append(children[kept[-1], brought[-1]])
            brought.append(int(logits[kept[-1]].argmax()))
        return Verified(len(ids) - 1, tokens, parents, logits, kept, NO_STATES), brought

    def speculative(self, speculator: Any, prompt: Sequence[int], count: int, most: int = 16) -> Decoded:
        """The greedy answer with drafts."""
        ids = [*prompt, int(self.logits(prompt).argmax())]
        trips = 0
        while len(ids) < len(prompt) + count:
            draft = speculator.draft(ids, most)
            assert len(draft) <= most
            assert all(0 < chance <= 1 for chance in draft.chances)
            seen, brought = self.verify(ids, draft)
            speculator.observe(seen)
            ids += brought
            trips += 1
        return Decoded(ids[len(prompt) : len(prompt) + count], trips)


@pytest.fixture(scope="session")
def toy() -> Callable[[int], Toy]:
    """Seed → model."""
    return Toy


@pytest.fixture(scope="session")
def trusted() -> Any:
    """As much of a `Trusted` as a speculator looks at."""
    head = SimpleNamespace(embedding=lambda: torch.empty(VOCABULARY, 4))
    return SimpleNamespace(
        info=SimpleNamespace(fingerprint="f" * 32), parts=SimpleNamespace(head=head), cut=Cut(1, 2, 3)
    )


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test, with no table or profile in it."""
    made = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CUTLAYER_HOME", str(made))
    return made
