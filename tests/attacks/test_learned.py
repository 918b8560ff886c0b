"""Learned attacks on tiny random models: they read what is there, and nothing where nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cutlayer.attacks.attack import Auxiliary, Observation, Threat, build_attack, prepare
from cutlayer.attacks.attributes import fit_attribute
from cutlayer.attacks.lora import adapt
from cutlayer.attacks.prior import Prior
from cutlayer.attacks.table import TokenTable
from cutlayer.attacks.token_softmax import TokenSoftmax
from cutlayer.attacks.training import hold_out
from cutlayer.audit.scene import Scene
from cutlayer.defences.channel import Repeated
from cutlayer.errors import InputError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.attacks.attack import Reader

VOCABULARY, LENGTH = 101, 8
SMALL = {
    "mlp": "mlp:steps=160,width=3,batch=256",
    "gru": "gru:steps=120,hidden=48",
    "gru-mixture": "gru:experts=2,steps=80,hidden=48",
    "cunningham": "cunningham:width=64,epochs=12",
    "cunningham-embedding": "cunningham:width=128,epochs=25,target=embedding",
    "revertlm-stage-1": "revertlm:stage=1,steps=150,batch=48",
}


def scene_at(directory: Path, cut: str) -> Scene:
    layers = Cut.parse(cut, 6)
    return Scene(directory, layers, load_client(directory, layers, torch.float32))


def random_ids(sequences: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def shallow(tiny: Callable[[str], Path]) -> Scene:
    return scene_at(tiny("llama"), "1:-2")


@pytest.fixture(scope="module")
def threat(shallow: Scene) -> Threat:
    return shallow.threat(shallow.auxiliary(random_ids(768, 1)))


def accuracy(reader: Reader, scene: Scene, prompts: torch.Tensor) -> float:
    hits = [reader.read(scene.observe(ids.tolist())).tokens == ids for ids in prompts]
    return float(torch.stack(hits).float().mean())


def accuracy_on_noise(reader: Reader, scene: Scene, prompts: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(9)
    hits = []
    for ids in prompts:
        true = scene.observe(ids.tolist()).released
        noise = torch.randn(true.shape, generator=generator) * true.std()
        hits.append(reader.read(Observation(noise)).tokens == ids)
    return float(torch.stack(hits).float().mean())


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL.keys())
def test_reads_what_is_there_and_nothing_from_noise(spec: str, shallow: Scene, threat: Threat) -> None:
    reader = prepare(build_attack(spec), threat)
    prompts = random_ids(24, 2)
    assert accuracy(reader, shallow, prompts) >= 0.9
    assert accuracy_on_noise(reader, shallow, prompts) <= 0.06  # 1 % by chance, 192 positions

    observation = shallow.observe(prompts[0].tolist())
    guess = reader.read(observation)
    ranked = reader.ranked(observation, 5)  # type: ignore[attr-defined]
    assert ranked.shape == (LENGTH, 5)
    assert torch.equal(ranked[:, 0], guess.tokens)
    assert bool(((guess.confidence > 0) & (guess.confidence <= 1)).all())


@pytest.mark.parametrize("spec", ["nearest", "nearest:metric=l2"])
def test_the_nearest_row_is_the_token_where_embeddings_are_sent(spec: str, tiny: Callable[[str], Path]) -> None:
    scene = scene_at(tiny("llama"), "0:-2")
    reader = prepare(build_attack(spec), scene.threat())
    assert accuracy(reader, scene, random_ids(8, 2)) == 1.0
    assert accuracy_on_noise(reader, scene, random_ids(8, 2)) <= 0.1


def test_one_seed_one_reader_and_the_callers_chance_is_not_touched(shallow: Scene, threat: Threat) -> None:
    attack = build_attack("mlp:steps=20")
    observation = shallow.observe(random_ids(1, 2)[0].tolist())
    before = torch.random.get_rng_state()
    first, second = (prepare(attack, threat).read(observation) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = prepare(attack, threat._replace(seed=1)).read(observation)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.confidence, second.confidence)
    assert not torch.equal(first.confidence, other.confidence)


def test_training_on_what_the_defence_releases_beats_a_stale_inverter(shallow: Scene, threat: Threat) -> None:
    defended = shallow.under("gaussian:sigma=0.02,clip=1")
    adapted = defended.threat(defended.auxiliary(random_ids(768, 1)))
    attack = build_attack(SMALL["mlp"])
    prompts = random_ids(24, 2)
    stale = accuracy(prepare(attack, threat), defended, prompts)
    retrained = accuracy(prepare(attack, adapted), defended, prompts)
    assert retrained > stale + 0.2


def test_a_classifier_never_names_a_token_it_was_not_taught_and_a_regression_does(tiny: Callable[[str], Path]) -> None:
    scene = scene_at(tiny("llama"), "0:-2")
    taught = random_ids(256, 1) % 70
    threat = scene.threat(scene.auxiliary(taught))
    unseen = 70 + random_ids(16, 2) % 31

    classifier = prepare(build_attack("cunningham:width=64,epochs=10"), threat)
    assert classifier.types.tolist() == list(range(70))  # type: ignore[attr-defined]
    assert max(int(classifier.read(scene.observe(ids.tolist())).tokens.max()) for ids in unseen) < 70

    regression = prepare(build_attack("cunningham:width=64,epochs=10,target=embedding"), threat)
    assert accuracy(regression, scene, unseen) > 0.3


def test_a_classifier_is_trained_on_no_more_pairs_than_allowed(threat: Threat) -> None:
    reader = prepare(build_attack("cunningham:width=8,epochs=1,pairs=20"), threat)
    assert 1 < len(reader.types) <= 20  # type: ignore[attr-defined]


def test_who_needs_what() -> None:
    assert build_attack("cunningham").card.needs == {"auxiliary"}
    assert build_attack("cunningham:target=embedding").card.needs == {"auxiliary", "embedding"}
    assert build_attack("revertlm").card.needs == {"auxiliary", "embedding", "prior"}
    assert build_attack("revertlm:stage=1").card.needs == {"auxiliary", "embedding"}
    ignorant = Threat("W0", Repeated(), auxiliary=Auxiliary(random_ids(4, 0), torch.zeros(4, LENGTH, 32)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="embedding"):
        prepare(build_attack("mlp"), ignorant)


@pytest.mark.parametrize(
    "spec", ["nearest:metric=l1", "mlp:width=0", "cunningham:target=word", "gru:experts=5", "revertlm:stage=3"]
)
def test_options_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        build_attack(spec)


def copying_model() -> nn.Module:
    """A model that was taught, in seconds, to write again what stood before the start token."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
        model: nn.Module = transformers.LlamaForCausalLM(config)
        optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
        for _ in range(160):
            text = torch.randint(3, VOCABULARY, (48, LENGTH))
            logits = model(torch.cat([text, torch.ones(48, 1, dtype=torch.long), text], 1)).logits[:, LENGTH:-1]
            loss = cross_entropy(logits.flatten(0, 1), text.flatten())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model


def test_revertlm_writes_a_text_of_the_right_length_from_guessed_embeddings(shallow: Scene, threat: Threat) -> None:
    model = copying_model()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    informed = threat._replace(prior=Prior(model))  # type: ignore[arg-type]
    prompts = random_ids(8, 2)
    reader = prepare(build_attack("revertlm:steps=150,batch=48,sequences=48,beams=2"), informed)
    assert accuracy(reader, shallow, prompts) >= 0.8
    assert len(reader.read(shallow.observe([5, 6, 7])).tokens) == 3
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_low_rank_corrections_start_at_nothing_and_are_all_that_learns() -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(6, 4), "k_proj": nn.Linear(6, 4)})
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    before = model["q_proj"](x)
    adapt(model, {"q_proj"}, rank=2, alpha=4.0)
    assert torch.equal(model["q_proj"](x), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"q_proj.a", "q_proj.b"}
    with torch.no_grad():
        model["q_proj"].b.normal_()
    layer = model["q_proj"]
    merged = layer.base.weight + 2.0 * layer.b @ layer.a
    torch.testing.assert_close(layer(x), x @ merged.T + layer.base.bias)
    with pytest.raises(InputError, match="w_pack"):
        adapt(model, {"w_pack"}, rank=2, alpha=4.0)


def test_the_sampled_loss_estimates_the_loss_over_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    size, batch = 6000, 256
    common = 1 / torch.arange(1, size + 1).float()
    text = torch.multinomial(common, 50_000, replacement=True, generator=generator)
    softmax = TokenSoftmax(TokenTable(torch.randn(size, 12, generator=generator)), text)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        sampled, exact = [], []
        for ids in text.split(batch)[:30]:
            queries = softmax.unit[ids] * 0.3
            sampled.append(softmax.loss(queries, ids))
            exact.append(cross_entropy(softmax(queries), ids))
    assert float(torch.stack(sampled).mean()) == pytest.approx(float(torch.stack(exact).mean()), rel=0.01)


def test_topics_outlive_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    topics = torch.randn(3, 32, generator=generator)
    labels = [("law", "medicine", "music")[i % 3] for i in range(240)]
    states = [topics[i % 3] + 3 * torch.randn(20 + i % 7, 32, generator=generator) for i in range(240)]
    reader = fit_attribute(states[:180], labels[:180])
    guesses = reader.predict(states[180:])
    assert sum(map(str.__eq__, guesses, labels[180:])) >= 54
    again = fit_attribute(states[:180], labels[:180]).predict(states[180:])
    assert guesses == again
    shuffled = [labels[i * i % 7] for i in range(180)]
    blind = fit_attribute(states[:180], shuffled).predict(states[180:])
    assert sum(map(str.__eq__, blind, labels[180:])) <= 40


def test_attributes_that_cannot_be_learned_are_refused() -> None:
    states = [torch.zeros(3, 4)] * 3
    for labels in (["a", "a"], ["a", "a", "a"], ["a", "a", "b"]):
        with pytest.raises(InputError, match="attribute needs"):
            fit_attribute(states, labels)


def test_one_sequence_leaves_none_to_hold_back() -> None:
    with pytest.raises(InputError, match="at least 2"):
        hold_out(1)
