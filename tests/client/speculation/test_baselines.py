"""The published speculators do what their papers' code does."""

from __future__ import annotations

from typing import Any

import torch

from cutlayer.client.speculation.cunningham import Cunningham
from cutlayer.client.speculation.lookahead import Lookahead
from cutlayer.client.speculation.template import TREE, StaticRecycling


def paths(draft: Any) -> set[tuple[int, ...]]:
    """Every path from the root to a leaf."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    inner = {path[:-1] for path in found}
    return {path for path in found if path not in inner}


def test_cunningham_takes_the_oldest_branches() -> None:
    ids = [7, 1, 2, 7, 3, 4, 7, 5, 6, 7]
    assert paths(Cunningham(3, 5).draft([*ids, 9, 7], 99)) == {(1, 2), (3, 4), (5, 6)}
    assert paths(Cunningham(3, 2).draft([*ids, 9, 7], 99)) == {(1, 2), (3, 4)}
    assert not Cunningham(3, 5).draft([1, 2, 3, 8], 99)


def test_cunningham_enters_one_ngram_of_an_answer_per_step() -> None:
    speculator = Cunningham(3, 5)
    speculator.draft([1, 2, 3, 9], 99)
    # Two tokens came at once: 3 9 4 was never the end of what was verified.
    assert not speculator.draft([1, 2, 3, 9, 4, 5, 3], 99).child(-1, 9)
    assert paths(speculator.draft([1, 2, 3, 9, 4, 5, 3, 9], 99)) == {(4, 5)}


def test_cunningham_forgets_what_was_rolled_back() -> None:
    speculator = Cunningham(3, 5)
    speculator.draft([1, 2, 3, 4, 5, 1], 99)
    assert paths(speculator.draft([1, 6, 7, 8, 1], 99)) == {(6, 7)}


def test_static_recycling_has_the_published_tree() -> None:
    assert len(TREE) == 80
    assert [sum(len(path) == depth for path in TREE) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
    assert all(path[:-1] in TREE for path in TREE if len(path) > 1)


def test_static_recycling_guesses_the_last_candidates(toy: Any) -> None:
    model, speculator = toy(0), StaticRecycling()
    seen, _brought = model.verify([1, 2], speculator.draft([1, 2], 80))
    speculator.observe(seen)
    draft = speculator.draft([1, 2, 9, 2], 80)
    assert draft.tokens[:8] == tuple(model.logits([1, 2]).topk(8).indices.tolist())


def test_lookahead_iterates_as_published(toy: Any) -> None:
    """Against the lists of the published code, with every row computed from its path."""
    columns, n, guesses = 4, 4, 3
    model, speculator = toy(1), Lookahead(columns, n, guesses, prompt=False)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    drawn = torch.randint(len(ids), (columns + n - 3,), generator=torch.Generator().manual_seed(0))
    past: list[list[int]] = [[ids[at] for at in drawn.tolist()]]
    pool: dict[int, list[tuple[int, ...]]] = {}
    for _ in range(25):
        full = len(past) == n - 1
        window = [[*past[0][:i], *(level[i] for level in past[1:])] for i in range(len(past[0]) + 1)]
        expected = {tuple(path) for path in window} | set(pool.get(ids[-1], []) if full else [])
        draft = speculator.draft(ids, 999)
        drafted = {path[:depth] for path in paths(draft) for depth in range(len(path) + 1)}
        assert expected <= drafted
        assert len(draft) == len({path[:depth] for path in expected for depth in range(1, len(path) + 1)})
        answers = [int(model.logits([*ids, *path]).argmax()) for path in window]
        if full:
            keys = [ids[-1], *past[0]]
            for i, answer in enumerate(answers):
                ngram = (*(level[i] for level in past[1:]), answer)
                pool[keys[i]] = [*(known for known in pool.get(keys[i], []) if known != ngram), ngram][-guesses:]
            past = [past[1][1:], *past[2:], answers]
        else:
            past = [*(level[1:] for level in past), answers[1:]]
        seen, brought = model.verify(ids, draft)
        speculator.observe(seen)
        ids += brought
    assert len(past[0]) == columns - 1
    assert all(len(level) == columns for level in past[1:])
    assert sum(map(len, pool.values())) > 5
