"""The token tree against the head itself; candidate search and maximum a posteriori decoding against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.attacks.attack import Observation, build_attack, missing, prepare
from cutlayer.attacks.tree import TreeForward
from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from cutlayer.attacks.prior import Prior

FAMILIES = ["llama", "qwen3", "olmo2", "gpt_neox", "cohere"]
PROMPTS = torch.randint(6, 101, (4, 12), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", ["0:6", "1:-1", "4:-1"])
def test_every_branch_of_a_tree_is_what_the_head_gives_for_it_alone(scene, family: str, cut: str) -> None:
    made = scene(family, cut)
    tree = TreeForward(made.head)
    tree.extend([10, 11, 12], [-1, 0, 1])
    branches = tree.extend([20, 21, 22], [2, 2, 3])  # 3 is the first of these
    alone = [[10, 11, 12, 20], [10, 11, 12, 21], [10, 11, 12, 20, 22]]
    for row, ids in zip(branches, alone, strict=True):
        assert torch.allclose(row, made.hidden(torch.tensor([ids]))[0, -1], atol=1e-4)
    tree.keep([0, 1, 2, 4])
    assert len(tree) == 4
    after = tree.extend([30], [3])
    assert torch.allclose(after[0], made.hidden(torch.tensor([[10, 11, 12, 21, 30]]))[0, -1], atol=1e-4)
    tree.keep([0])
    assert torch.allclose(tree.extend([7], [0])[0], made.hidden(torch.tensor([[10, 7]]))[0, -1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("cut", "codec"), [("1:-1", "fp32"), ("4:-1", "fp32"), ("4:-1", "bf16")])
def test_search_reads_every_undefended_token(scene, family: str, cut: str, codec: str) -> None:
    made = scene(family, cut, codec=codec)
    reader = prepare(build_attack("search"), made.threat())
    for ids in PROMPTS:
        guess = reader.read(made.observe(ids))
        assert guess.tokens.tolist() == ids
        assert guess.effort["candidates"] <= 101 * len(ids)
        assert guess.confidence.min() > 0.99


@pytest.mark.parametrize(
    "defence", ["topk:keep=0.2", "quantise:bits=4", "clip:norm=1", "lowrank:rank=16", "dropout:p=0.5"]
)
def test_search_reads_through_deterministic_defences_and_masks(scene, defence: str) -> None:
    made = scene(defence=defence)
    reader = prepare(build_attack("search"), made.threat())
    assert [reader.read(made.observe(ids)).tokens.tolist() for ids in PROMPTS] == PROMPTS


def test_search_says_nothing_certain_of_states_that_no_token_gives(scene) -> None:
    made = scene()
    noise = Observation(10 * torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1)))
    guess = prepare(build_attack("search"), made.threat()).read(noise)
    assert len(guess.tokens) == 6
    assert guess.effort["candidates"] >= 101  # it looked at all there is


def test_a_limit_bounds_the_search(scene) -> None:
    made = scene()
    noise = Observation(10 * torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)))
    guess = prepare(build_attack("search:limit=20"), made.threat()).read(noise)
    assert guess.effort["candidates"] <= 5 * (20 + 8)  # refused ones are compared again at the end


def test_sessions_of_one_prompt_average_the_noise_away(scene) -> None:
    made = scene(defence="gaussian:relative=1.5")
    right = {}
    for count in (1, 16):
        reader = prepare(build_attack("search:width=101"), made.threat(repeats=count))
        sessions = [made_secret(i) for i in range(count)]
        right[count] = sum(
            int((reader.read(made.observe(ids, sessions)).tokens == torch.tensor(ids)).sum()) for ids in PROMPTS
        )
    assert right[16] > right[1] + 10


def made_secret(number: int):
    from cutlayer.audit.scene import attacker_secret

    return attacker_secret(-1, 0, number)


def test_beam_with_all_candidates_and_no_prior_is_no_worse_than_search(scene, prior: Prior) -> None:
    made = scene(defence="gaussian:relative=1.0")
    threat = made.threat(prior=prior)
    search = prepare(build_attack("search:width=101"), threat)
    beam = prepare(build_attack("map-beam:gamma=0,beams=8,proposals=808"), threat)
    scores = {"search": 0, "beam": 0}
    for ids in PROMPTS:
        seen = made.observe(ids, [made_secret(7)])
        for name, reader in (("search", search), ("beam", beam)):
            scores[name] += int((reader.read(seen).tokens == torch.tensor(ids)).sum())
    assert scores["beam"] >= scores["search"]


def test_a_prior_that_knows_the_text_lifts_decoding_under_noise(scene, prior: Prior) -> None:
    """Greedy text of the prior itself, under noise that hides most tokens: the prior decides the rest."""
    made = scene(defence="gaussian:relative=3.0")
    blind = prepare(build_attack("prior-only"), made.threat(prior=prior))
    text = blind.read(Observation(torch.zeros(1, 12, 32))).tokens.tolist()
    seen = made.observe(text, [made_secret(3)])
    right = {
        gamma: int(
            (
                prepare(build_attack(f"map-beam:gamma={gamma}"), made.threat(prior=prior)).read(seen).tokens
                == torch.tensor(text)
            ).sum()
        )
        for gamma in (0, 3)
    }
    assert right[3] > right[0]


def test_the_prior_alone_reads_next_to_nothing_and_needs_no_observation(scene, prior: Prior) -> None:
    made = scene()
    reader = prepare(build_attack("prior-only"), made.threat(prior=prior))
    guesses = [reader.read(made.observe(ids)).tokens for ids in PROMPTS]
    assert all(torch.equal(guesses[0], guess) for guess in guesses)
    right = sum(int((guess == torch.tensor(ids)).sum()) for guess, ids in zip(guesses, PROMPTS, strict=True))
    assert right <= 4


def test_an_attack_that_lacks_something_says_what(scene) -> None:
    threat = scene().threat(knowledge="W0")
    assert missing(build_attack("search"), threat) == {"embedding", "head"}
    with pytest.raises(InputError, match="search needs embedding, head, which a W0 attacker"):
        prepare(build_attack("search"), threat)


@pytest.mark.parametrize("spec", ["search:width=0", "search:wide=3", "map-beam:beams=many", "prior-only:x=1"])
def test_wrong_options_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        build_attack(spec)


def test_unknown_attacks_are_listed() -> None:
    with pytest.raises(UnknownNameError, match="map-beam"):
        build_attack("magic")
