"""Packed weights: the same hidden states, in every family, and only where something is gained."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cutlayer.models.packed import PackedLinear, can_pack, pack, unpack
from cutlayer.models.pages import PAGE, PagePool, PageTable
from cutlayer.models.parts import load_body, load_client
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.models.weights import keep_weights, stored_bytes
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.models.parts import Body

CUT = Cut(1, 5, 6)
HIDDEN = 32
ROUNDING = 2**-7
"""Of bfloat16, relative."""

packs = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="this processor does not compute in bfloat16"
)


@torch.inference_mode()
def outputs(body: Body) -> list[torch.Tensor]:
    """Hidden states after a prefill, a verification step and a decode step of two sessions."""
    pool = PagePool(CUT.body_layers, 8 * PAGE)
    ragged = RaggedBody(body, pool)
    tables = [PageTable(pool, "somebody", 2 * PAGE) for _ in range(2)]
    made = torch.Generator().manual_seed(5)
    found: list[torch.Tensor] = []
    for rows in ((20, 7), (21, 18), (9, 1), (1, 1)):
        states = [torch.randn(n, HIDDEN, generator=made).bfloat16() for n in rows]
        found += ragged([Chunk(table, rows) for table, rows in zip(tables, states, strict=True)])
    return found


@packs
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "qwen3", "gpt_neox"])
def test_packed_layers_give_the_same_states(family: str, tiny: Callable[[str], Path]) -> None:
    plain, packed = (load_body(tiny(family), CUT, torch.bfloat16) for _ in range(2))
    keep_weights(packed, "dtype")
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert not any(type(module) is nn.Linear for module in packed.shell.base_model.modules())
    assert stored_bytes(packed) == stored_bytes(plain)
    for one, other in zip(outputs(plain), outputs(packed), strict=True):
        error = float((other.float() - one.float()).norm() / one.float().norm())
        assert error <= ROUNDING


@packs
@given(
    rows=st.integers(0, 70), inputs=st.integers(1, 96), outputs=st.integers(1, 96), bias=st.booleans(),
    seed=st.integers(0, 2**16), filled=st.sampled_from([range(0), range(17, 33)]),
)  # fmt: skip
def test_a_packed_product_is_the_product(
    rows: int, inputs: int, outputs: int, bias: bool, seed: int, filled: range
) -> None:
    """Whether or not this processor gains from filling rows up."""
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    given_rows = torch.randn(1, rows, inputs, dtype=torch.bfloat16)
    with torch.inference_mode(), patch("cutlayer.models.packed.FILLED", filled):
        found = PackedLinear(linear)(given_rows).double()
        exact = nn.functional.linear(
            given_rows.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double()
        )
    assert found.shape == exact.shape
    size = (given_rows.double().abs() @ linear.weight.double().abs().T) + 1
    assert bool(((found - exact).abs() <= ROUNDING * size).all())


@packs
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_unpacking_gives_the_layers_back(family: str, tiny: Callable[[str], Path]) -> None:
    plain, packed = (load_body(tiny(family), CUT, torch.bfloat16) for _ in range(2))
    pack(packed.shell)
    unpack(packed.shell)
    assert classes(packed) == classes(plain)
    for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad


@packs
def test_a_packed_tail_gives_the_same_logits(tiny: Callable[[str], Path]) -> None:
    plain, tail = (load_client(tiny("llama"), CUT, torch.bfloat16).tail for _ in range(2))
    keep_weights(tail, "dtype")
    assert isinstance(tail.shell.get_output_embeddings(), PackedLinear)
    states = torch.randn(1, 5, HIDDEN).bfloat16()
    with torch.inference_mode():
        one, other = (part(states, part.new_cache()).float() for part in (plain, tail))  # [1, T, V]
    assert (one - other).norm() <= ROUNDING * one.norm()


def test_other_dtypes_stay_plain(tiny: Callable[[str], Path]) -> None:
    body = load_body(tiny("llama"), CUT, torch.float32)
    before = classes(body)
    pack(body.shell)
    assert classes(body) == before


def classes(body: Body) -> list[type]:
    """The classes of all modules."""
    return [type(module) for module in body.modules()]
