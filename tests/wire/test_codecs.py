"""Codecs: what comes out is what went in, to the bit where the dtype allows, and nothing that is not finite passes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import FrameError, NonFiniteError
from cutlayer.wire.codecs import CODECS, LOSSLESS_FOR

NAMES = ["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_FINITE = [math.nan, math.inf, -math.inf]


def bits(values: torch.Tensor) -> list[int]:
    """Bit patterns, which also tell −0 from 0."""
    return values.contiguous().view(torch.int32 if values.dtype is torch.float32 else torch.int16).flatten().tolist()


def extremes(dtype: torch.dtype) -> torch.Tensor:
    """[12, 1]: largest, smallest normal, smallest subnormal, zero, one, odd, of either sign."""
    info = torch.finfo(dtype)
    positive = torch.tensor([info.max, info.tiny, info.smallest_normal * info.eps, 0.0, 1.0, 1 / 3], dtype=dtype)
    return torch.cat([positive, -positive]).unsqueeze(1)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_round_trip_is_exact_in_the_codecs_own_dtype(name: str, data: st.DataObject) -> None:
    """Every finite bit pattern, subnormals and −0 included."""
    codec, dtype = CODECS.get(name), DTYPES[name]
    width = dtype.itemsize * 8
    positions, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    patterns = data.draw(
        st.lists(
            st.integers(-(1 << (width - 1)), (1 << (width - 1)) - 1),
            min_size=positions * size,
            max_size=positions * size,
        )
    )
    raw = torch.tensor(patterns, dtype=torch.int32 if width == 32 else torch.int16)
    values = raw.view(dtype).view(positions, size)
    if not torch.isfinite(values).all():
        with pytest.raises(NonFiniteError):
            codec.encode(values)
        with pytest.raises(NonFiniteError):
            codec.decode(raw.numpy().tobytes(), size)
        return
    encoded = codec.encode(values)
    assert len(encoded) == positions * codec.row_bytes(size)
    decoded = codec.decode(encoded, size)
    assert decoded.shape == (positions, size)
    assert decoded.dtype is dtype
    assert bits(decoded) == bits(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copies", [1, 4096])
def test_the_largest_values_pass_however_many(name: str, copies: int) -> None:
    """Their sum overflows; each of them is finite."""
    codec = CODECS.get(name)
    values = extremes(DTYPES[name]).repeat(1, copies)  # [12, copies]
    assert bits(codec.decode(codec.encode(values), copies)) == bits(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 8191])
def test_one_value_that_is_not_finite_is_found_anywhere_both_ways(name: str, bad: float, at: int) -> None:
    codec = CODECS.get(name)
    values = torch.full((2, 4096), torch.finfo(DTYPES[name]).max, dtype=DTYPES[name])
    values.view(-1)[at] = bad
    with pytest.raises(NonFiniteError, match=name):
        codec.encode(values)
    with pytest.raises(NonFiniteError):
        codec.decode(values.view(torch.uint8).numpy().tobytes(), 4096)


def test_opposite_infinities_do_not_cancel() -> None:
    with pytest.raises(NonFiniteError):
        CODECS.get("fp32").encode(torch.tensor([[math.inf, -math.inf]]))


@pytest.mark.parametrize("value", [65520.0, -1e5, 3e38])
def test_values_beyond_fp16_are_refused_and_not_clipped(value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"beyond 6\.55e"):
        CODECS.get("fp16").encode(torch.tensor([[1.0, value]]))


def test_values_that_round_up_to_infinity_in_bf16_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="bf16"):
        CODECS.get("bf16").encode(torch.tensor([[torch.finfo(torch.float32).max]]))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@given(st.floats(-60000, 60000, width=32))
def test_narrowing_rounds_to_nearest(name: str, value: float) -> None:
    codec = CODECS.get(name)
    decoded = codec.decode(codec.encode(torch.tensor([[value]])), 1)
    assert decoded.item() == torch.tensor(value).to(DTYPES[name]).item()


@pytest.mark.parametrize("name", NAMES)
def test_any_layout_and_dtype_is_taken(name: str) -> None:
    codec = CODECS.get(name)
    values = torch.arange(12.0).view(3, 4)
    for given_as in (values.double(), values.t().contiguous().t(), values.repeat(1, 2)[:, :4], values.requires_grad_()):
        assert codec.decode(codec.encode(given_as), 4).tolist() == values.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", [1, 2, -1])
def test_ragged_payloads_are_refused(name: str, rest: int) -> None:
    codec = CODECS.get(name)
    with pytest.raises(FrameError, match="no whole number"):
        codec.decode(bytes(3 * codec.row_bytes(8) + rest), 8)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_payload_is_refused(name: str) -> None:
    with pytest.raises(FrameError):
        CODECS.get(name).decode(b"", 8)


@pytest.mark.parametrize("name", NAMES)
def test_the_tensor_does_not_alias_the_buffer(name: str) -> None:
    codec = CODECS.get(name)
    buffer = bytearray(codec.encode(torch.ones(1, 2)))
    decoded = codec.decode(memoryview(buffer), 2)
    buffer[:] = bytes(len(buffer))
    assert decoded.tolist() == [[1.0, 1.0]]


def test_bytes_are_little_endian() -> None:
    assert CODECS.get("fp32").encode(torch.tensor([[1.0]])) == bytes.fromhex("0000803f")
    assert CODECS.get("bf16").encode(torch.tensor([[1.0]])) == bytes.fromhex("803f")
    assert CODECS.get("fp16").encode(torch.tensor([[1.0]])) == bytes.fromhex("003c")


def test_every_compute_dtype_has_a_codec_that_keeps_it() -> None:
    assert {name: DTYPES[codec] for name, codec in LOSSLESS_FOR.items()} == {
        name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")
    }
