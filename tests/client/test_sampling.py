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


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    penalty=st.floats(0.5, 2),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=6),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    answer=st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
)
def test_penalties_and_bias_are_those_of_their_definitions(
    seed: int,
    presence: float,
    frequency: float,
    penalty: float,
    bias: dict[int, float],
    prompt: list[int],
    answer: list[int],
) -> None:
    """Repetition and bias against transformers' processors, presence and frequency against the formula of OpenAI's interface."""
    scores = logits(seed)
    seen = [*prompt, *answer]
    expected, ids = scores[None], torch.tensor([seen], dtype=torch.long)
    if seen:
        expected = oracle.RepetitionPenaltyLogitsProcessor(penalty)(ids, expected)
    for token in range(VOCABULARY):  # mu[j] - c[j] · frequency - (c[j] > 0) · presence
        count = answer.count(token)
        expected[0, token] -= count * frequency + (count > 0) * presence
    if bias:
        expected = oracle.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})(ids, expected)
    ours = Sampler(
        Sampling(presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=penalty, logit_bias=bias)
    )
    got = ours._biased(ours._counted(ours._penalised(scores, seen), answer))
    assert torch.allclose(got, expected[0], atol=1e-4)
    assert ours.choose(scores, seen, answer) == int(got.argmax())


class Only:
    """A mask that leaves some tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.taken = tokens, []

    def allowed(self) -> torch.Tensor:
        return torch.isin(torch.arange(VOCABULARY), torch.tensor(self.tokens))

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_a_mask_has_the_last_word(temperature: float) -> None:
    """Even over the largest bias, at any temperature, and it hears of what was chosen."""
    mask = Only(3, 7)
    sampler = Sampler(Sampling(temperature=temperature, seed=1, logit_bias={5: 100}), mask)
    drawn = [sampler.choose(logits(i), []) for i in range(40)]
    assert set(drawn) <= {3, 7}
    assert mask.taken == drawn


def test_a_temperature_near_zero_is_greedy_and_finite() -> None:
    scores = torch.tensor([30.0, 31.0, 29.0])
    assert Sampler(Sampling(temperature=1e-40, seed=0)).choose(scores, []) == 1


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="outside the vocabulary"):
        Sampler(Sampling(logit_bias={VOCABULARY: 1.0})).choose(logits(0), [])


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
        {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0}, {"presence_penalty": 2.1}, {"frequency_penalty": -3.0},
        {"logit_bias": {1: 101.0}},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="sampling"):
        Sampler(Sampling(**wrong))  # type: ignore[arg-type]
