"""Vocabulary matching against the truth, in order and out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.attacks.attack import Observation, build_attack, missing, prepare
from cutlayer.audit.scene import attacker_secret
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.attacks.prior import Prior

VOCABULARY = 101
PROMPTS = torch.randint(6, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(5)).tolist()
REPEATS = [[9, 9, 9, 40, 9, 40, 40, 9]]
"""A token and its repetition have the same state at the beginning of a prompt: attention sees nothing else."""
DEFENCES = ["none", "permute:axis=columns", "permute:axis=rows", "permute:axis=both"]


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize(
    ("family", "cut"), [("llama", "1:-1"), ("llama", "4:-1"), ("olmo2", "4:-1"), ("gpt_neox", "2:-1")]
)
def test_every_token_is_read_in_its_place(scene, prior: Prior, family: str, cut: str, defence: str) -> None:
    made = scene(family, cut, defence)
    reader = prepare(build_attack("vma:batch=16"), made.threat(prior=prior))
    for ids in [*PROMPTS[:2], *REPEATS]:
        guess = reader.read(made.observe(ids))
        assert guess.tokens.tolist() == ids
        assert guess.confidence.tolist() == [1.0] * len(ids)
        assert guess.effort["candidates"] <= VOCABULARY * len(ids)


@pytest.mark.parametrize("defence", ["none", "permute:axis=both"])
def test_prompts_read_together_are_read_as_alone(scene, prior: Prior, defence: str) -> None:
    made = scene(defence=defence)
    reader = prepare(build_attack("vma"), made.threat(prior=prior))
    seen = [made.observe(ids) for ids in (PROMPTS[0], PROMPTS[1][:3], REPEATS[0])]
    for together, alone in zip(reader.read_many(seen), map(reader.read, seen), strict=True):
        assert together.tokens.tolist() == alone.tokens.tolist()
        assert together.effort == alone.effort


@pytest.mark.parametrize("axis", ["rows", "both"])
def test_embeddings_out_of_order_give_the_words_away_and_not_their_order(scene, prior: Prior, axis: str) -> None:
    made = scene(defence=f"permute:axis={axis}", cut="0:6")
    guess = prepare(build_attack("vma"), made.threat(prior=prior)).read(made.observe(PROMPTS[0]))
    assert sorted(guess.tokens.tolist()) == sorted(PROMPTS[0])
    assert guess.tokens.tolist() != PROMPTS[0]


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize(("codec", "sessions"), [("bf16", 1), ("fp32", 4), ("bf16", 4)])
def test_rounding_and_several_sessions_cost_nothing(
    scene, prior: Prior, defence: str, codec: str, sessions: int
) -> None:
    made = scene(defence=defence, codec=codec)
    reader = prepare(build_attack("vma"), made.threat(prior=prior, repeats=sessions))
    for ids in PROMPTS[:2]:
        seen = made.observe(ids, [attacker_secret(3, 0, i) for i in range(sessions)])
        assert reader.read(seen).tokens.tolist() == ids


def test_what_the_language_model_expects_is_tried_first(scene, prior: Prior) -> None:
    made = scene(defence="permute:axis=both")
    blind = prepare(build_attack("prior-only"), made.threat(prior=prior))
    text = blind.read(Observation(torch.zeros(1, 12, 32))).tokens.tolist()
    reader = prepare(build_attack("vma:batch=1"), made.threat(prior=prior))
    assert reader.read(made.observe(text)).effort["candidates"] == 12
    assert reader.read(made.observe(PROMPTS[0])).effort["candidates"] > 120


def test_a_limit_bounds_the_attack_and_doubt_is_told(scene, prior: Prior) -> None:
    made = scene(defence="permute:axis=both")
    noise = Observation(10 * torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)))
    guess = prepare(build_attack("vma:limit=20,batch=8"), made.threat(prior=prior)).read(noise)
    assert guess.effort["candidates"] == 5 * 20
    assert guess.confidence.tolist() == [0.0] * 5
    whole = prepare(build_attack("vma"), made.threat(prior=prior)).read(noise)
    assert whole.effort["candidates"] == 5 * VOCABULARY


def test_search_reads_sorted_coordinates_through_the_channel(scene) -> None:
    made = scene(defence="permute:axis=columns")
    reader = prepare(build_attack("search"), made.threat())
    assert [reader.read(made.observe(ids)).tokens.tolist() for ids in PROMPTS] == PROMPTS


def test_a_regression_retrained_on_sorted_coordinates_reads_embeddings_a_stale_one_does_not(scene) -> None:
    made = scene(defence="permute:axis=columns", cut="0:6")
    text = torch.randint(VOCABULARY, (256, 8), generator=torch.Generator().manual_seed(1))
    right = {}
    for name, taught in (("retrained", made), ("stale", scene(cut="0:6"))):
        reader = prepare(build_attack("ridge"), made.threat(taught.auxiliary(text)))
        right[name] = sum(int((reader.read(made.observe(ids)).tokens == torch.tensor(ids)).sum()) for ids in PROMPTS)
    assert right["retrained"] > 20  # of 48
    assert right["stale"] < 8


def test_it_needs_layers_and_a_language_model(scene, prior: Prior) -> None:
    assert missing(build_attack("vma"), scene().threat()) == {"prior"}
    assert missing(build_attack("vma"), scene().threat(knowledge="W0", prior=prior)) == {"head"}
    with pytest.raises(InputError, match="vma needs prior"):
        prepare(build_attack("vma"), scene().threat())


@pytest.mark.parametrize("spec", ["vma:batch=0", "vma:batch=5000", "vma:limit=0", "vma:width=3"])
def test_wrong_options_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="vma"):
        build_attack(spec)
