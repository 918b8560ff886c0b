"""What was verified is guessed when its context comes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.speculation import candidates as module
from cutlayer.client.speculation.candidates import Candidates, likeliest
from cutlayer.client.speculation.draft import Draft
from cutlayer.client.speculation.speculator import build_speculator

if TYPE_CHECKING:
    import pytest


@given(st.integers(1, 4), st.integers(1, 2000), st.integers(1, 12), st.integers(0, 99))
def test_likeliest_is_topk_of_softmax(rows: int, vocabulary: int, count: int, seed: int) -> None:
    logits = 4 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    tokens, chances = likeliest(logits, count)
    expected = logits.softmax(-1).topk(min(count, vocabulary))
    torch.testing.assert_close(chances, expected.values)
    torch.testing.assert_close(logits.gather(1, tokens), logits.gather(1, expected.indices))


def test_longer_contexts_are_told_apart(toy: Any) -> None:
    model, candidates = toy(0), Candidates(2)
    for ids in ([5, 1], [6, 1]):
        seen, _ = model.verify(ids, Draft())
        candidates.learn(seen, [tuple(ids)])
    for ids in ([5, 1], [6, 1]):
        assert next(iter(candidates.get(tuple(ids)))) == int(model.logits(ids).argmax())
    both = candidates.get((1,))
    assert set(both) >= {int(model.logits([5, 1]).argmax()), int(model.logits([6, 1]).argmax())}
    assert sum(both.values()) <= 1 + 1e-6


def test_rejected_rows_teach_too(toy: Any, trusted: Any) -> None:
    model, speculator = toy(0), build_speculator("recycling", trusted)
    speculator.draft([4, 2], 8)
    wrong = next(token for token in range(23) if token != int(model.logits([4, 2]).argmax()))
    seen, brought = model.verify([4, 2], Draft.chain([wrong], [0.5]))
    speculator.observe(seen)
    draft = speculator.draft([4, 2, *brought, 2, wrong], 8)
    assert draft.tokens[0] == int(model.logits([2, wrong]).argmax())


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    candidates = Candidates(1)
    for token in range(50):
        candidates.put((token,), {1: 0.5})
        candidates.put((0,), {2: 0.5})
    assert len(candidates) == 10
    assert candidates.get((0,))
    assert candidates.get((49,))
    assert not candidates.get((20,))


def test_improbable_candidates_are_dropped() -> None:
    candidates = Candidates(1)
    candidates.put((1,), {5: 1.0})
    for _ in range(40):
        candidates.put((1,), {6: 1.0})
    assert set(candidates.get((1,))) == {6}
