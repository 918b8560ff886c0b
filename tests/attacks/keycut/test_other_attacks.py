"""Every other attack finds what it is made for, and fails honestly where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from cutlayer.attacks.keycut.attack import KEYCUT_ATTACKS, Held, NoClaim, Public, build_attack, missing
from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Target

CHANCE = 0.1
"""More than eight times what guessing one of 101 ids gets right."""


def language(length: int, seed: int, vocabulary: int = 101) -> list[list[int]]:
    """Documents of a random first-order Markov chain whose ids are nearly equally frequent, but not their successors."""
    chain = torch.Generator().manual_seed(1)
    steps = torch.stack([torch.randperm(vocabulary, generator=chain) for _ in range(3)])  # [3, V]
    shares = torch.tensor([0.6, 0.3, 0.1])
    drawn = torch.Generator().manual_seed(seed)
    documents = []
    for _ in range(length // 100):
        token, document = int(torch.randint(vocabulary, (1,), generator=drawn)), []
        for _ in range(100):
            document.append(token)
            token = int(steps[int(torch.multinomial(shares, 1, generator=drawn)), token])
        documents.append(document)
    return documents


def zipf(length: int, seed: int, vocabulary: int = 101) -> list[list[int]]:
    """Documents of independent ids, id i about 1.3 times as frequent as id i + 1."""
    drawn = torch.Generator().manual_seed(seed)
    shares = 1.3 ** -torch.arange(float(vocabulary))
    return torch.multinomial(shares, length, replacement=True, generator=drawn).reshape(-1, 100).tolist()


def test_nearest_row_reads_a_permutation_alone_and_nothing_more(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    assert target(tiny("llama"), components=("vocabulary",)).share("nearest-row") == 1


def test_nearest_row_is_at_chance_under_a_dense_key(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    assert target(tiny("llama")).share("nearest-row") < CHANCE


def test_nearest_row_does_not_compare_rows_of_other_length(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    claim = target(tiny("llama"), expand=64).claim("nearest-row")
    assert isinstance(claim, NoClaim)
    assert "64 and 32" in claim.reason


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gemma", "qwen3_moe"])
@pytest.mark.parametrize("spec", ["vocabulary-matching", "gate-means"])
def test_products_without_noise_name_every_id(
    spec: str, family: str, tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    assert target(tiny(family)).share(spec) >= 0.97


def test_wide_products_vote_where_the_vocabulary_is_small(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    made = target(tiny("llama"))
    wide, narrow = (made.claim(f"vocabulary-matching:layers=1,columns={columns}") for columns in (101, 100))
    assert (wide.facts["products"], narrow.facts["products"]) == (5, 3)  # type: ignore[union-attr]


def test_noise_hides_ids_from_vocabulary_matching(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    assert target(tiny("llama"), mode="noisy", alpha_e=2.0, alpha_h=1.0).share("vocabulary-matching") < 0.5


def test_known_pairs_of_more_than_the_hidden_size_name_the_rest(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    made = target(tiny("llama"))
    assert made.share("known-plaintext:pairs=50", known=range(50)) >= 0.99
    few = made.claim("known-plaintext:pairs=50", known=range(20))
    assert isinstance(few, NoClaim)
    assert "there are 20" in few.reason


def test_fingerprint_needs_no_weights(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    made = target(tiny("llama"))
    assert made.share("fingerprint", corpus=[list(range(101))]) >= 0.97


def test_fingerprint_names_none_but_its_candidates(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    claim = target(tiny("llama")).claim(
        "fingerprint:probes=10,candidates=5", corpus=[[7, 7, 8, 8, 9, 9, 3, 3, 4, 4, 5]]
    )
    assert len(claim.ids) == 10  # type: ignore[union-attr]
    assert set(claim.plain.tolist()) <= {3, 4, 7, 8, 9}  # type: ignore[union-attr]


def test_frequent_ids_fall_to_their_frequency(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    made = target(tiny("llama"))
    claim = made.claim("frequency", corpus=zipf(50_000, 1), log=zipf(50_000, 2))
    ten = [int(made.client.tau[token]) for token in range(10)]
    named = dict(zip(claim.ids.tolist(), claim.plain.tolist(), strict=True))  # type: ignore[union-attr]
    assert [named[token] for token in ten] == list(range(10))


def test_neighbours_betray_what_frequencies_do_not(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    made = target(tiny("llama"))
    corpus, log = language(40_000, 1), language(40_000, 2)
    assert made.share("frequency", corpus=corpus, log=log) < CHANCE
    # a chain on which a match of nearly equal frequencies starts from chance is hard; a few rounds find it or do not
    anchored = [[*document[:50], *[token % 20 for token in document[50:60]]] for document in corpus]
    hidden = [[*document[:50], *[token % 20 for token in document[50:60]]] for document in log]
    assert made.share("decipherment:rounds=20", corpus=anchored, log=hidden) > 3 * made.share(
        "frequency", corpus=anchored, log=hidden
    )


def test_ids_beyond_those_studied_are_not_named(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    text = zipf(20_000, 1)
    claim = target(tiny("llama")).claim("decipherment:ids=16", corpus=text, log=text)
    assert int((claim.plain >= 0).sum()) == 16  # type: ignore[union-attr]


@pytest.mark.parametrize("depth", [0, 0.5])
def test_states_are_read_with_recovered_keys(
    depth: float, tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    made = target(tiny("llama"))
    texts = torch.randint(101, (60, 100), generator=torch.Generator().manual_seed(0)).tolist()
    with_keys = made.share(f"states:depth={depth},keys=clx", corpus=texts[:30], log=texts[30:])
    without = made.share(f"states:depth={depth},keys=none", corpus=texts[:30], log=texts[30:])
    assert with_keys > (0.99 if depth == 0 else 0.3)
    assert without < with_keys / 2


def test_a_damaged_checkpoint_is_an_error_and_no_claim(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    made = target(tiny("llama"))
    file = made.export.directory / "model.safetensors"  # type: ignore[operator]
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="not finite"):
        made.claim("clx")


def test_every_attack_says_what_it_needs(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    made = target(tiny("llama"))
    held = Held(made.export, torch.arange(101))
    for name in KEYCUT_ATTACKS.names():
        card = KEYCUT_ATTACKS.get(name).card
        assert card.name == name
        assert missing(build_attack(name), Public(), held) == set(card.needs)
