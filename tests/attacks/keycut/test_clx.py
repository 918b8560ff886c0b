"""Cross-layer cancellation gives τ back, whatever the mode, the family and the dtype; on another base it says that it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.attacks.keycut.attack import Claim, build_attack
from cutlayer.attacks.keycut.cancellation import align, cancel
from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Target

DENSE = ["llama", "llama-tied", "llama-bias", "mistral", "qwen2", "qwen3", "gemma", "mixtral", "qwen3_moe"]


@pytest.mark.parametrize("family", DENSE)
def test_exact_export(family: str, tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    assert target(tiny(family)).share("clx") >= 0.99


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_monomial_export(family: str, tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    assert target(tiny(family), mode="monomial").share("clx") >= 0.99


@pytest.mark.parametrize(
    "chosen",
    [
        {"expand": 64},
        {"dtype": "bfloat16"},
        {"mode": "paper", "alpha_e": 0.0, "alpha_h": 0.0},
        {"mode": "paper", "alpha_e": 0.0, "alpha_h": 0.0, "per_writer_keys": True},
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_without_noise_nothing_helps(
    family: str, chosen: dict[str, Any], tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    assert target(tiny(family), **chosen).share("clx") >= 0.99


def test_noise_of_the_paper_hides_few_ids(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    """Even in 32 dimensions, where noise of the size of the rows leads much further astray than in hundreds."""
    noisy = target(tiny("llama"), mode="paper")
    assert noisy.share("clx") >= 0.9
    assert noisy.share("clx:rows=embedding") < noisy.share("clx")


def test_recovered_keys_undo_the_hidden_basis(tiny: Callable[[str], Path], target: Callable[..., Target]) -> None:
    made = target(tiny("llama"), expand=64)
    keys = cancel(made.base, made.export, layers=3)
    tau = torch.from_numpy(made.client.tau.astype("int64"))
    for rows, plain, key in (
        (made.export.embedding(), made.base.embedding(), keys.stream),
        (made.export.head(), made.base.head(), keys.reader),
    ):
        undone = rows[tau] @ key.undo
        assert (undone - plain @ key.seen).norm() < 1e-3 * plain.norm()
        assert (undone - plain).norm() < 0.02 * plain.norm()  # norm weights near 0 leave directions nearly unseen
    assert keys.order.cosine > 0.999
    assert keys.order.distinct == 1


def test_another_base_recovers_nothing_and_looks_like_it(
    tiny: Callable[[str], Path], target: Callable[..., Target]
) -> None:
    """mistral's tiny model has llama's shapes and other weights."""
    made = target(tiny("llama"))
    right, wrong = made.claim("clx"), made.claim("clx", base=target_weights(tiny("mistral")))
    assert isinstance(right, Claim)
    assert isinstance(wrong, Claim)
    truth = torch.from_numpy(made.client.inverse.astype("int64"))
    assert (wrong.plain == truth).float().mean() < 0.1
    assert right.facts["channel_cosine"] > 0.99 > 0.9 > wrong.facts["channel_cosine"]
    assert wrong.facts["channels_named"] < 0.95
    assert wrong.facts["lead"] < right.facts["lead"] / 3


def target_weights(directory: Path) -> Any:
    from cutlayer.attacks.keycut.weights import Weights

    return Weights.open(directory)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_permuted_and_scaled_matrix_is_aligned(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 60, generator=drawn)
    rows, columns = torch.randperm(40, generator=drawn), torch.randperm(60, generator=drawn)
    scales = torch.rand(40, 1, generator=drawn) + 0.5
    order = align(x, scales * x[rows][:, columns])
    assert torch.equal(order.down, rows)
    assert torch.equal(order.gate, columns)
    assert order.cosine > 0.999


def test_noise_on_the_product_is_repaired_by_alternating() -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(200, 300, generator=drawn)
    rows, columns = torch.randperm(200, generator=drawn), torch.randperm(300, generator=drawn)
    y = x[rows][:, columns] + 0.2 * torch.randn(200, 300, generator=drawn)
    order = align(x, y)
    assert torch.equal(order.down, rows)
    assert torch.equal(order.gate, columns)


@pytest.mark.parametrize("spec", ["clx:layers=0", "clx:rows=all", "clx:speed=9", "nearest-row:metric=l2"])
def test_wrong_options_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        build_attack(spec)


def test_an_unknown_attack_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"clx, .*vocabulary-matching"):
        build_attack("guess")
