"""Whatever is drafted, answers keep the law of plain sampling; and a seed gives the very same answer if drafts are named."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cutlayer.client.sampling import Sampler, Sampling
from cutlayer.client.speculation.draft import ROOT, Draft

if TYPE_CHECKING:
    from collections.abc import Callable

V = 4
TRIALS = 8_000


def model(prefix: tuple[int, ...]) -> torch.Tensor:
    """Logits [V] after a prefix: any function of it will do."""
    generator = torch.Generator().manual_seed(hash(prefix) % 2**31)
    return 0.8 * torch.randn(V, generator=generator)


def drafter(prefix: tuple[int, ...]) -> torch.Tensor:
    """Another model's distribution [V]: near, and not the same."""
    return (model(prefix) + 0.7 * model((*prefix, -1))).softmax(-1)


def named(sampler: torch.Generator) -> Draft:
    """The two likeliest guesses, and one after the likelier."""
    first = drafter(()).topk(2).indices.tolist()
    return Draft((*first, int(drafter((first[0],)).argmax())), (ROOT, ROOT, 0), (0.5, 0.3, 0.5))


def drawn_chain(generator: torch.Generator) -> Draft:
    """Two guesses drawn from the drafter, one after the other."""
    one = int(torch.multinomial(drafter(()), 1, generator=generator))
    two = int(torch.multinomial(drafter((one,)), 1, generator=generator))
    return Draft((one, two), (ROOT, 0), (0.5, 0.5), (drafter(()), drafter((one,))))


def drawn_tree(generator: torch.Generator) -> Draft:
    """Three guesses drawn independently, which may be alike; a named one beside them; and one drawn after the first."""
    tokens = torch.multinomial(drafter(()), 3, replacement=True, generator=generator).tolist()
    after = int(torch.multinomial(drafter((tokens[0],)), 1, generator=generator))
    laws = (drafter(()), drafter(()), drafter(()), None, drafter((tokens[0],)))
    return Draft((*tokens, 1, after), (ROOT, ROOT, ROOT, ROOT, 0), (0.5,) * 5, laws)


def said(draft: Draft, sampler: Sampler) -> tuple[int, int]:
    """The first two tokens of an answer, the way a generation walks a draft and goes on without one."""
    answer: tuple[int, ...] = ()
    node: int | None = ROOT
    while len(answer) < 2:
        drawn = draft.drawn(node) if node is not None else []
        token = sampler.choose(model(answer), [], [], drawn)
        node = draft.child(node, token) if node is not None else None
        answer = (*answer, token)
    return answer[0], answer[1]


@pytest.mark.parametrize("draft_of", [named, drawn_chain, drawn_tree])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_pairs_of_tokens_have_the_models_law(draft_of: Callable[[torch.Generator], Draft], temperature: float) -> None:
    drafts = torch.Generator().manual_seed(1)
    sampler = Sampler(Sampling(temperature=temperature, seed=2))
    counts = Counter(said(draft_of(drafts), sampler) for _ in range(TRIALS))
    expected = {
        (a, b): float((model(()) / temperature).softmax(-1)[a] * (model((a,)) / temperature).softmax(-1)[b])
        for a, b in product(range(V), repeat=2)
    }
    observed = [counts[pair] for pair in expected]
    share = [TRIALS * probability / sum(expected.values()) for probability in expected.values()]
    assert min(share) > 5, "too few trials for the test's approximation"
    assert chisquare(observed, share).pvalue > 1e-4


def test_the_test_would_notice_a_draft_that_is_believed_too_readily() -> None:
    """The same with a walk that accepts a drawn guess whenever the model gives it at least half the drafter's probability."""
    generator = torch.Generator().manual_seed(1)
    counts: Counter[int] = Counter()
    law, target = drafter(()), model(()).softmax(-1)
    for _ in range(TRIALS):
        token = int(torch.multinomial(law, 1, generator=generator))
        if target[token] < 0.5 * law[token]:
            token = int(torch.multinomial(target, 1, generator=generator))
        counts[token] += 1
    assert (
        chisquare([counts[i] for i in range(V)], (TRIALS * target.double() / target.double().sum()).tolist()).pvalue
        < 1e-4
    )


@given(st.integers(0, 2**31), st.floats(0.1, 2))
def test_named_drafts_use_no_randomness_of_their_own(seed: int, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=seed)
    generator = torch.Generator()
    assert said(named(generator), Sampler(sampling)) == said(Draft(), Sampler(sampling))


def test_a_draft_of_the_models_own_law_is_always_right() -> None:
    law = model(()).softmax(-1)
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        token = int(torch.multinomial(law, 1, generator=generator))
        assert sampler.choose(model(()), [], [], [(token, law)]) == token
