"""The gradient attacks on tiny random models, whose own forward and whose law are the oracles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.attacks.attack import build_attack, prepare
from cutlayer.attacks.calibrate import calibrate, log_likelihood
from cutlayer.attacks.matching import EmbeddingForward, RowLookup, Targets
from cutlayer.attacks.prior import Prior
from cutlayer.attacks.table import TokenTable
from cutlayer.audit.scene import Scene, attacker_secret
from cutlayer.errors import InputError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cutlayer.attacks.attack import Guess, Observation, Threat
    from cutlayer.attacks.matching_reader import MatchingReader

    Tiny = Callable[[str], Path]

LAYERS = 6
LENGTHS = (12, 7, 9, 5)


def scene(directory: Path, cut: str, defence: str = "none") -> Scene:
    layers = Cut.parse(cut, LAYERS)
    return Scene(directory, layers, load_client(directory, layers, torch.float32), defence)


def prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    coins = torch.Generator().manual_seed(7)
    return [torch.randint(3, 101, (length,), generator=coins).tolist() for length in lengths]


def watched(at: Scene, texts: Sequence[list[int]]) -> list[Observation]:
    return [at.observe(ids, [attacker_secret(99, i, 0)]) for i, ids in enumerate(texts)]


def threat(at: Scene, prior: bool = False) -> Threat:
    coins = torch.Generator().manual_seed(3)
    own = at.auxiliary(torch.randint(101, (40, 12), generator=coins))
    return at.threat(own, Prior.load(at.directory, dtype=torch.float32) if prior else None)


def reader(spec: str, at: Scene, prior: bool = False) -> Any:
    ready: MatchingReader = prepare(build_attack(spec), threat(at, prior))  # type: ignore[assignment]
    return ready


def accuracy(guesses: Sequence[Guess], texts: Sequence[list[int]]) -> float:
    hits = [guess.tokens == torch.tensor(ids) for guess, ids in zip(guesses, texts, strict=True)]
    return float(torch.cat(hits).float().mean())


def likelihood(at: Scene, observation: Observation, guess: Guess) -> float:
    return log_likelihood(at.channel, observation, at.hidden(guess.tokens[None])[0])


@pytest.mark.parametrize(
    ("family", "cut"), [("llama", "0:-1"), ("llama", "3:-1"), ("gemma2", "3:-1"), ("mistral", "2:-1")]
)
def test_embeddings_forward_is_the_heads_own(tiny: Tiny, family: str, cut: str) -> None:
    at = scene(tiny(family), cut)
    forward = EmbeddingForward(at.head)
    ids = torch.tensor(prompts((15, 15)))
    torch.testing.assert_close(forward(forward.table[ids]), at.hidden(ids), rtol=1e-4, atol=1e-4)


def test_padding_changes_no_state_and_no_gradient(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "2:-2")
    forward = EmbeddingForward(at.head)
    texts = prompts()
    targets = Targets.of(watched(at, texts), at.channel, "cpu")
    batch = targets.padded(range(len(texts)))
    assert batch.weight.count_nonzero() == sum(LENGTHS)
    alone = forward.table[torch.tensor(texts[3])].clone().requires_grad_()  # [5, D]
    padded = torch.zeros(4, 12, 32)
    padded[3, :5] = alone.detach()
    padded.requires_grad_()
    (forward(padded)[3, :5] ** 2).sum().backward()
    (forward(alone[None]) ** 2).sum().backward()
    assert padded.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(padded.grad[3, :5], alone.grad, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in at.head.parameters())


@pytest.mark.parametrize("init", ["ridge", "mean", "uniform"])
def test_actinv_reads_an_undefended_shallow_cut_without_calibration(tiny: Tiny, init: str) -> None:
    at = scene(tiny("llama"), "1:-2")
    texts = prompts()
    guesses = reader(f"actinv:calibrate=false,steps=75,init={init}", at).read_many(watched(at, texts))
    assert accuracy(guesses, texts) >= 0.95
    assert all(guess.tokens.shape == guess.confidence.shape for guess in guesses)
    assert all(0 <= value <= 1 for guess in guesses for value in guess.confidence.tolist())


def test_noise_in_place_of_states_reads_nothing(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "1:-2")
    texts = prompts((12, 12, 12))
    coins = torch.Generator().manual_seed(0)
    noise = [one._replace(released=torch.randn(one.released.shape, generator=coins)) for one in watched(at, texts)]
    assert accuracy(reader("actinv:calibrate=false,steps=50", at).read_many(noise), texts) < 0.2


def test_tbs_and_pia_read_an_undefended_shallow_cut(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "1:-2")
    texts = prompts((12, 7))
    observations = watched(at, texts)
    for spec in ("tbs:steps=250", "tbs:steps=250,loss=cosine", "pia:steps=200"):
        assert accuracy(reader(spec, at, prior=True).read_many(observations), texts) >= 0.85, spec


def test_calibration_helps_under_noise_and_never_lowers_the_likelihood(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "2:-2", "gaussian:relative=0.6")
    texts = prompts()
    observations = watched(at, texts)
    plain = reader("actinv:steps=50,calibrate=false", at).read_many(observations)
    tried = reader("actinv:steps=50,speculated=0", at).read_many(observations)
    assert accuracy(tried, texts) > accuracy(plain, texts)
    for observation, before, after in zip(observations, plain, tried, strict=True):
        assert likelihood(at, observation, after) >= likelihood(at, observation, before) - 1e-3
    assert [guess.effort["candidates"] for guess in tried] == [10 * length for length in LENGTHS]


def test_the_language_models_candidates_are_tried_too(tiny: Tiny) -> None:
    """With embeddings that point at wrong tokens, only a model that expects the right one can lead there."""
    at = scene(tiny("llama"), "2:-2")
    table = EmbeddingForward(at.head).table
    lookup = RowLookup(TokenTable(table))
    prior = Prior.load(at.directory, dtype=torch.float32)
    text = [int(prior.first().argmax())]
    while len(text) < 8:
        text.append(int(prior.log_probs(torch.tensor([text]))[0].argmax()))
    wrong = [table[(torch.tensor(text) + 50) % 101]]
    score, observations = at.channel.log_likelihood, watched(at, [text])
    blind = calibrate(at.head, lookup, score, observations, wrong, neighbours=1)[0]
    led = calibrate(at.head, lookup, score, observations, wrong, neighbours=1, prior=prior, speculated=1)[0]
    assert blind.tokens.tolist() != text
    assert led.tokens.tolist() == text
    assert led.candidates == 16


def test_a_batch_guesses_as_one_by_one_does(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "2:-2", "gaussian:relative=0.2")
    texts = prompts()
    observations = watched(at, texts)
    ready = reader("actinv:steps=40,batch=3", at, prior=True)
    together = ready.read_many(observations)
    for observation, guess in zip(observations, together, strict=True):
        alone = ready.read(observation)
        assert alone.tokens.tolist() == guess.tokens.tolist()
        assert alone.effort == guess.effort
        torch.testing.assert_close(alone.confidence, guess.confidence, rtol=0.1, atol=0.02)


def test_a_sweep_returns_every_stop_and_reading_keeps_the_likeliest(tiny: Tiny) -> None:
    at = scene(tiny("llama"), "2:-2", "gaussian:relative=0.6")
    observation = watched(at, prompts((12,)))[0]
    ready = reader("actinv:stops=40+2+10,calibrate=false,init=mean", at)
    guesses = ready.sweep(observation)
    assert list(guesses) == [2, 10, 40]
    assert [guess.effort["steps"] for guess in guesses.values()] == [2, 10, 40]
    scores = [likelihood(at, observation, guess) for guess in guesses.values()]
    assert len(set(scores)) > 1
    assert likelihood(at, observation, ready.read(observation)) == pytest.approx(max(scores))


def test_an_early_stop_is_the_same_point_of_the_same_descent(tiny: Tiny) -> None:
    """A prompt that is explained after some steps stands still; stops before keep what they had."""
    at = scene(tiny("llama"), "2:-2")
    guesses = reader("actinv:stops=1+60+70,calibrate=false,init=mean", at).sweep(watched(at, prompts((8,)))[0])
    assert guesses[70].effort["steps"] < 70
    assert guesses[60].tokens.tolist() == guesses[70].tokens.tolist()
    assert guesses[1].tokens.tolist() != guesses[70].tokens.tolist()


@pytest.mark.parametrize("defence", ["topk:keep=0.5", "dropout:p=0.3"])
def test_only_what_was_sent_is_matched(tiny: Tiny, defence: str) -> None:
    at = scene(tiny("llama"), "2:-2", defence)
    texts = prompts()
    guesses = reader("actinv:steps=75,speculated=0", at).read_many(watched(at, texts))
    assert accuracy(guesses, texts) >= 0.95


def test_what_a_filter_dropped_is_bounded_and_what_a_mask_dropped_is_not(tiny: Tiny) -> None:
    texts = prompts((9,))
    filtered, masked = (scene(tiny("llama"), "2:-2", defence) for defence in ("topk:keep=0.5", "dropout:p=0.3"))
    kept = Targets.of(watched(filtered, texts), filtered.channel, "cpu").padded([0])
    hidden = filtered.hidden(torch.tensor(texts))
    assert kept.carried.sum(-1).eq(16).all()
    torch.testing.assert_close(kept.ceiling, hidden.abs().sort(-1).values[..., 16])
    assert Targets.of(watched(masked, texts), masked.channel, "cpu").padded([0]).ceiling.isinf().all()


@pytest.mark.parametrize("spec", ["actinv:init=uniform,steps=20,speculated=0", "pia:steps=20", "tbs:steps=20"])
def test_the_same_seed_guesses_the_same(tiny: Tiny, spec: str) -> None:
    at = scene(tiny("llama"), "2:-2", "gaussian:relative=0.5")
    observation = watched(at, prompts((10,)))[0]
    first, second = (reader(spec, at, prior=True).read(observation) for _ in range(2))
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.confidence.tolist() == second.confidence.tolist()


def test_needs_follow_from_the_options() -> None:
    assert build_attack("actinv").card.needs == {"head", "auxiliary", "prior"}
    assert build_attack("actinv:init=mean,calibrate=false").card.needs == {"head"}
    assert build_attack("pia:speculated=0").card.needs == {"head"}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("actinv:stops=50+x", "stops"),
        ("actinv:stops=0", "stops"),
        ("actinv:init=best", "init"),
        ("pia:rate=0", "rate"),
        ("tbs:loss=l3", "loss"),
    ],
)
def test_bad_options_are_named(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_attack(spec)
