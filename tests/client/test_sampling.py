"""Sampling against transformers' own processors, and in law."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers.generation import logits_process as oracle

from cutlayer.client.sampling import Sampler, Sampling
from cutlayer.errors import InputError

VOCABULARY = 50


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.5, 2),
    seen=st.lists(st.integers(0, VOCABULARY - 1), max_size=10),
)
def test_distribution_equals_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seen: list[int]
) -> None:
    scores = logits(seed)
    ours = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty))
    expected, ids = scores[None], torch.tensor([seen], dtype=torch.long)
    if seen:
        expected = oracle.RepetitionPenaltyLogitsProcessor(penalty)(ids, expected)
    expected = oracle.TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = oracle.TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = oracle.TopPLogitsWarper(top_p)(ids, expected)
    if min_p > 0:
        expected = oracle.MinPLogitsWarper(min_p)(ids, expected)
    got = ours.probabilities(ours._penalised(scores, seen))
    assert torch.allclose(got, expected[0].softmax(-1), atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.5, top_k=8, seed=3))
    scores = logits(1)
    probabilities = sampler.probabilities(scores)
    drawn = Counter(sampler.choose(scores, []) for _ in range(5000))
    kept = probabilities > 0
    assert set(drawn) <= set(kept.nonzero().flatten().tolist())
    observed = [drawn[i] for i in kept.nonzero().flatten().tolist()]
    assert (
        stats.chisquare(
            observed, (probabilities[kept].double() / probabilities[kept].double().sum() * 5000).numpy()
        ).pvalue
        > 1e-3
    )


def test_temperature_zero_is_argmax_and_penalty_still_counts() -> None:
    scores = torch.tensor([1.0, 2.0, 1.9])
    assert Sampler(Sampling()).choose(scores, [1]) == 1
    assert Sampler(Sampling(repetition_penalty=1.2)).choose(scores, [1]) == 2


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    scores = torch.zeros(1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.choose(scores, []) for _ in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="sampling"):
        Sampler(Sampling(**wrong))  # type: ignore[arg-type]
