"""A whole audit of tiny exports: with and without the client's key, with the right base and with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.audit.keycut.material import Material, first_tokens, material
from cutlayer.audit.keycut.quality import perplexity, perplexity_increase, quality, relative_task_loss
from cutlayer.audit.keycut.run import DEFAULT_ATTACKS, NO_KEY, audit, strongest
from cutlayer.audit.keycut.words import plain, verdict
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.audit.utility import Item
from cutlayer.errors import InputError
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOME = ("nearest-row", "clx", "known-plaintext:pairs=40", "frequency", "states:depth=0")


def text(seed: int = 0) -> Material:
    drawn = torch.randint(101, (60, 40), generator=torch.Generator().manual_seed(seed)).tolist()
    return Material(drawn[:20], drawn[20:], "random ids")


@pytest.fixture
def made(tiny: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path, OwnerKey]:
    """Base, export, key."""
    base = tiny("llama")
    key = create_owner_key(base, choose(base), Secret(bytes(32)))
    export(base, tmp_path / "export", key)
    return base, tmp_path / "export", key


def test_with_the_key_every_claim_is_scored(made: tuple[Path, Path, OwnerKey]) -> None:
    base, directory, key = made
    seen = []
    outcomes = audit(
        directory, base, key.client(), text(), attacks=SOME, sample=40, progress=lambda name, share: seen.append(name)
    )
    assert [one.attack for one in outcomes] == seen == list(SOME)
    by_name = {one.attack: one for one in outcomes}
    assert by_name["clx"].figures["ids"].value == by_name["clx"].figures["occurrences"].value == 1  # type: ignore[union-attr]
    assert by_name["known-plaintext:pairs=40"].figures["ids"].value > 0.95  # type: ignore[union-attr]
    assert by_name["frequency"].figures["occurrences"].value < 0.2  # type: ignore[union-attr]
    with_base, without = strongest(outcomes, with_base=True), strongest(outcomes, with_base=False)
    assert with_base is not None
    assert without is not None
    assert with_base.figures["occurrences"].value == 1  # type: ignore[union-attr]
    assert without.attack == "frequency"
    said = " ".join(verdict(outcomes))
    assert "has the base model reads 100.0%" in said
    assert "keys fell" in said


def test_without_the_key_nothing_is_scored_and_weights_still_speak(made: tuple[Path, Path, OwnerKey]) -> None:
    base, directory, _ = made
    outcomes = audit(directory, base, None, text(), attacks=SOME, sample=40)
    assert all(
        isinstance(figure, Unmeasured) and NO_KEY in figure.reason
        for one in outcomes
        for figure in one.figures.values()
    )
    by_name = {one.attack: one for one in outcomes}
    assert by_name["clx"].facts["channel_cosine"] > 0.99
    assert by_name["frequency"].seconds is None
    assert plain(outcomes, "none")["with_base"] is None
    assert "keys fell" in " ".join(verdict(outcomes))


def test_another_base_is_told_apart(made: tuple[Path, Path, OwnerKey], tiny: Callable[[str], Path]) -> None:
    _, directory, key = made
    (outcome,) = audit(directory, tiny("mistral"), key.client(), text(), attacks=("clx",), sample=40)
    assert outcome.figures["occurrences"].value < 0.1  # type: ignore[union-attr]
    assert "do not match this base" in " ".join(verdict([outcome]))


def test_a_base_of_another_shape_is_refused(
    made: tuple[Path, Path, OwnerKey], tiny: Callable[[str], Path], grouped_layers: Path
) -> None:
    _, directory, key = made
    with pytest.raises(InputError, match="layers 6 there, 3 here"):
        audit(directory, grouped_layers, key.client(), text(), attacks=("clx",))


@pytest.fixture
def grouped_layers(tmp_path: Path) -> Path:
    """A model of the same vocabulary and fewer layers."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "shallow")
    return tmp_path / "shallow"


def test_all_default_attacks_run(made: tuple[Path, Path, OwnerKey]) -> None:
    base, directory, key = made
    outcomes = audit(directory, base, key.client(), text(), sample=40)
    assert [one.attack for one in outcomes] == list(DEFAULT_ATTACKS)
    unmeasured = [one.attack for one in outcomes if isinstance(one.figures["ids"], Unmeasured)]
    assert unmeasured == [f"known-plaintext:pairs={pairs}" for pairs in (100, 300, 1000)]  # there are not so many ids


@pytest.mark.parametrize("length", [1, 500, 1200])
def test_texts_of_both_sides_share_no_document(length: int) -> None:
    found = material(lambda text: list(text.encode()), length)
    assert length <= sum(map(len, found.sent)) < length + 20_000
    assert not {bytes(document) for document in found.sent} & {bytes(document) for document in found.corpus}
    assert sum(map(len, first_tokens(found.sent, length))) == length


def test_quality_of_an_exact_export_is_that_of_its_base(made: tuple[Path, Path, OwnerKey]) -> None:
    base, directory, key = made
    plain_model, obfuscated = (AutoModelForCausalLM.from_pretrained(place).eval() for place in (base, directory))
    documents = text().sent[:6]
    items = [Item(document[:5], [document[5:8], document[8:10], document[10:14]], 0) for document in text(1).sent]
    before = quality(plain_model, documents, items)
    after = quality(obfuscated, documents, items, torch.from_numpy(key.tau().astype("int64")))
    assert after.nats == pytest.approx(before.nats, rel=1e-4)
    assert after.right == before.right
    assert abs(perplexity_increase(after, before).value) < 1e-4
    loss_of_nothing = relative_task_loss(after, before)
    assert loss_of_nothing.value == 0
    assert loss_of_nothing.low < 0 < loss_of_nothing.high  # a few items alike prove little
    with torch.inference_mode():
        loss = plain_model(torch.tensor(documents), labels=torch.tensor(documents)).loss
    assert perplexity(before).value == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_model_that_knows_nothing_has_nothing_to_lose(made: tuple[Path, Path, OwnerKey]) -> None:
    base, _, _ = made
    found = quality(AutoModelForCausalLM.from_pretrained(base).eval(), text().sent[:2], [])._replace(
        right=[False, False]
    )
    with pytest.raises(ValueError, match="nothing to lose"):
        relative_task_loss(found, found)


def test_figures_of_quality_have_intervals(made: tuple[Path, Path, OwnerKey]) -> None:
    base, _, _ = made
    found = quality(AutoModelForCausalLM.from_pretrained(base).eval(), text().sent[:6], [])
    figure = perplexity(found)
    assert isinstance(figure, Figure)
    assert figure.low < figure.value < figure.high
    assert figure.n == 6
