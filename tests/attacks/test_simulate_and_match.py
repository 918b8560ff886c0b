"""Simulate-and-match: what prefix and key determine is read, whatever it was aimed against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.attacks.attack import Observation, build_attack, missing, prepare
from cutlayer.audit.scene import attacker_secret
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.attacks.prior import Prior

PROMPTS = torch.randint(6, 101, (3, 8), generator=torch.Generator().manual_seed(6)).tolist()


def read(made, prior: Prior, spec: str = "simulate-and-match", sessions: int = 1) -> list[list[int]]:
    reader = prepare(build_attack(spec), made.threat(prior=prior, repeats=sessions))
    secrets = [attacker_secret(11, 0, i) for i in range(sessions)]
    return [reader.read(made.observe(ids, secrets)).tokens.tolist() for ids in PROMPTS]


@pytest.mark.parametrize("reading", ["decoy", "backprop", "power,steps=2,solves=3", "gradient,steps=1,unroll=2"])
def test_every_reading_of_pripert_is_read(scene, prior: Prior, reading: str) -> None:
    assert read(scene(defence=f"pripert:beta=0.8,reading={reading}"), prior) == PROMPTS


@pytest.mark.parametrize("defence", ["none", "topk:keep=0.2", "pripert:beta=0.8,rank=8"])
def test_what_the_law_alone_decides_is_read_without_simulation(scene, prior: Prior, defence: str) -> None:
    made = scene(defence=defence)
    reader = prepare(build_attack("simulate-and-match"), made.threat(prior=prior))
    guess = reader.read(made.observe(PROMPTS[0]))
    assert guess.tokens.tolist() == PROMPTS[0]
    assert guess.effort["simulations"] == 0
    assert guess.confidence.tolist() == [1.0] * len(PROMPTS[0])


def test_simulation_decides_where_the_wire_hides_the_length(scene, prior: Prior) -> None:
    """Under a bf16 wire the length of the perturbation allows many tokens; the defence run on them allows one."""
    made = scene(defence="pripert:beta=0.8,reading=decoy,neighbours=4", codec="bf16")
    right = {}
    for name, threat in (
        ("with", made.threat(prior=prior)),
        ("without", made.threat(prior=prior)._replace(release=None, simulate=None)),
    ):
        reader = prepare(build_attack("simulate-and-match:scans=4"), threat)
        guesses = [reader.read(made.observe(ids, [attacker_secret(11, 0, 0)])).tokens for ids in PROMPTS]
        right[name] = sum(int((guess == torch.tensor(ids)).sum()) for guess, ids in zip(guesses, PROMPTS, strict=True))
    assert right["with"] > right["without"] + 4


def test_several_sessions_of_one_prompt(scene, prior: Prior) -> None:
    assert read(scene(defence="pripert:beta=0.8,reading=decoy"), prior, sessions=2) == PROMPTS


def test_states_that_no_token_gives_end_at_the_limit_and_are_not_claimed(scene, prior: Prior) -> None:
    made = scene(defence="pripert:beta=0.8,reading=decoy")
    noise = Observation(10 * torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1)))
    guess = prepare(build_attack("simulate-and-match:scans=2,simulations=500"), made.threat(prior=prior)).read(noise)
    assert len(guess.tokens) == 6
    assert guess.effort["candidates"] <= 3 * 101
    assert guess.effort["simulations"] <= 500 + 64
    assert guess.confidence[-1] == 0


def test_it_needs_layers_and_a_language_model(scene, prior: Prior) -> None:
    assert missing(build_attack("simulate-and-match"), scene().threat()) == {"prior"}
    assert missing(build_attack("simulate-and-match"), scene().threat(knowledge="W0", prior=prior)) == {
        "embedding",
        "head",
    }


@pytest.mark.parametrize("options", ["keys=0", "scans=0", "width=3"])
def test_wrong_options_are_refused(options: str) -> None:
    with pytest.raises(InputError, match="simulate-and-match"):
        build_attack(f"simulate-and-match:{options}")
