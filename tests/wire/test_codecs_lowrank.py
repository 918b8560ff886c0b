"""Coordinates in a public subspace: what lies in it arrives, sides with different matrices have no codec in common."""

from __future__ import annotations

import math
import struct
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer import registry
from cutlayer.errors import FrameError, InputError, NonFiniteError, UnknownNameError
from cutlayer.registry import Registry
from cutlayer.wire import codecs
from cutlayer.wire.codecs import BF16, CODECS, FP32, Codec
from cutlayer.wire.codecs.lowrank import LowRankCodec

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 48
RANK = 12


def basis(seed: int = 0, size: int = SIZE, rank: int = RANK) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64)).Q.float()  # [D, R]


CODEC = LowRankCodec(basis(), FP32)


@given(st.integers(0, 1000), st.floats(1e-3, 1e6))
def test_what_lies_in_the_subspace_arrives_and_the_rest_is_lost(seed: int, size: float) -> None:
    rows = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed)) * size
    decoded = CODEC.decode(CODEC.encode(rows), SIZE)
    projected = rows.double() @ basis().double() @ basis().double().T
    assert torch.allclose(decoded.double(), projected, atol=1e-5 * size)
    again = CODEC.decode(CODEC.encode(decoded), SIZE)
    assert torch.allclose(again, decoded, atol=1e-5 * size)
    assert ((decoded - rows).norm(dim=-1) <= CODEC.precision * rows.norm(dim=-1)).all()


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4"])
def test_a_row_takes_what_the_codec_within_takes_for_the_coordinates(name: str) -> None:
    within = CODECS.get(name)
    codec = LowRankCodec(basis(), within)
    assert codec.row_bytes(SIZE) == within.row_bytes(RANK)
    assert len(codec.encode(torch.ones(3, SIZE))) == 3 * within.row_bytes(RANK)


def test_the_name_says_which_matrix_and_which_codec() -> None:
    names = {LowRankCodec(basis(seed), within).name for seed in (0, 1) for within in (FP32, BF16)}
    assert len(names) == 4
    assert LowRankCodec(basis().double(), FP32).name == CODEC.name
    assert CODEC.name.startswith(f"lowrank{RANK}-fp32-")


def test_a_plug_in_registers_it_and_sides_without_that_plug_in_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def side(*points: EntryPoint) -> Registry[Codec]:
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        made: Registry[Codec] = Registry("codecs", Codec, {"fp32": f"{codecs.__name__}.floats:FP32"})
        made.names()
        return made

    monkeypatch.setitem(sys.modules, "my_subspace", SimpleNamespace(CODEC=CODEC))
    assert side(EntryPoint(CODEC.name, "my_subspace:CODEC", "cutlayer.codecs")).get(CODEC.name) is CODEC
    with pytest.raises(UnknownNameError, match="fp32"):
        side().get(CODEC.name)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b * 1.01,
        lambda b: b[:, [0, 0]],
        lambda b: b.T,
        lambda b: b[:, :0],
        lambda b: b[0],
        lambda b: b.index_fill(0, torch.tensor([3]), math.nan),
    ],
)
def test_a_matrix_that_is_not_orthonormal_is_refused(spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(InputError, match="basis"):
        LowRankCodec(spoil(basis()), FP32)


def test_hidden_states_of_another_size_are_refused() -> None:
    for call in (
        lambda: CODEC.row_bytes(SIZE + 1),
        lambda: CODEC.encode(torch.ones(1, SIZE + 1)),
        lambda: CODEC.decode(bytes(4 * RANK), SIZE + 1),
    ):
        with pytest.raises(InputError, match=f"size {SIZE}, not {SIZE + 1}"):
            call()


@given(st.binary(min_size=1, max_size=8 * RANK))
def test_any_bytes_give_finite_values_or_a_typed_error(data: bytes) -> None:
    try:
        decoded = CODEC.decode(data, SIZE)
    except (FrameError, NonFiniteError):
        return
    assert torch.isfinite(decoded).all()
    assert decoded.shape == (len(data) // (4 * RANK), SIZE)


def test_coordinates_whose_sum_overflows_are_refused() -> None:
    largest = struct.pack("<f", torch.finfo(torch.float32).max)
    even = LowRankCodec(torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2), FP32)
    with pytest.raises(NonFiniteError, match="overflows"):
        even.decode(2 * largest, 2)
