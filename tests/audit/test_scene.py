"""A scene against what a real client sends, and utility against transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.audit.held import Held
from cutlayer.audit.scene import Scene, attacker_secret
from cutlayer.audit.utility import Item, Utility
from cutlayer.client.connect import Client
from cutlayer.errors import InputError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS = torch.randint(6, 101, (5, 14), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def scene(tiny: Callable[[str], Path]) -> Scene:
    directory = tiny("llama")
    cut = Cut.parse("2:-2", 6)
    return Scene(directory, cut, load_client(directory, cut, torch.float32))


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8", "int4"])
def test_what_a_scene_observes_is_what_crosses_the_wire(bench: Any, codec: str) -> None:
    held = Held(bench.server().connect)
    with Client(held, bench.options(codec=codec)) as client:
        ids = client.encode("what crosses", raw=True)
        client.generate(ids, max_tokens=1, ignore_eos=True).result()
        rows = torch.cat([client.codec.decode(row, client.info.hidden_size) for row in held.rows()])  # [T, D]
        made = Scene(client.directory, client.cut, client.parts, codec=codec)
        assert torch.equal(made.observe(ids).released[0], rows[: len(ids)].float())


def test_sessions_differ_and_one_session_repeats(scene: Scene) -> None:
    noisy = scene.under("gaussian:relative=0.5")
    first, second = attacker_secret(0, 0, 0), attacker_secret(0, 0, 1)
    ids = IDS[0].tolist()
    twice = noisy.observe(ids, [first, first, second]).released
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])


def test_the_attackers_text_goes_through_the_defence(scene: Scene) -> None:
    noisy = scene.under("gaussian:relative=1.0")
    clean = scene.auxiliary(IDS)
    once, often = (noisy.auxiliary(IDS, repeats) for repeats in (1, 25))
    ratio = (once.released - clean.released).norm() / (often.released - clean.released).norm()
    assert float(ratio) == pytest.approx(5, rel=0.2)
    assert torch.equal(noisy.auxiliary(IDS, hidden=clean.released).released, once.released)


def test_an_observation_needs_tokens_and_a_session(scene: Scene) -> None:
    with pytest.raises(InputError, match="at least one token and one session"):
        scene.observe([])
    with pytest.raises(InputError, match="at least one token and one session"):
        scene.observe([5], [])


def test_undefended_perplexity_is_that_of_the_unsplit_model(scene: Scene) -> None:
    model = AutoModelForCausalLM.from_pretrained(scene.directory, dtype=torch.float32)
    with torch.inference_mode():
        loss = float(model(IDS, labels=IDS).loss)
    found = Utility(scene.directory, scene.cut).measure(scene, IDS)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-2)  # the reference is kept in half precision
    assert found.perplexity_increase == pytest.approx(0, abs=1e-2)
    assert found.kl == pytest.approx(0, abs=1e-3)
    assert found.agreement > 0.97


def test_noise_costs_utility_the_more_there_is(scene: Scene) -> None:
    utility = Utility(scene.directory, scene.cut)
    found = [utility.measure(scene.under(f"gaussian:relative={r}"), IDS) for r in (0.1, 1.0, 5.0)]
    assert [one.kl for one in found] == sorted(one.kl for one in found)
    assert found[0].agreement > found[2].agreement


def test_the_task_is_scored_by_the_likeliest_choice(scene: Scene) -> None:
    model = AutoModelForCausalLM.from_pretrained(scene.directory, dtype=torch.float32)
    prompt, choices = [10, 11, 12], [[20, 21], [30], [40, 41, 42], [50]]
    scores = []
    for choice in choices:
        with torch.inference_mode():
            log_probs = torch.log_softmax(model(torch.tensor([prompt + choice])).logits[0], -1)
        scores.append(sum(float(log_probs[2 + i, token]) for i, token in enumerate(choice)) / len(choice))
    best = scores.index(max(scores))
    items = [Item(prompt, choices, best), Item(prompt, choices, (best + 1) % 4)]
    assert Utility(scene.directory, scene.cut).accuracy(scene, items) == [True, False]
