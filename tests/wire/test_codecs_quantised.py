"""int8 and int4: rows as `docs/wire.md` lays them out, errors within the bounds it states, and hostile bytes."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cutlayer.errors import FrameError, InputError, NonFiniteError
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = {"int8": 8, "int4": 4}
GROUP = {"int8": 64, "int4": 32}
NAMES = list(BITS)
KEPT = 8
SIZES = st.integers(1, 140)
LARGEST = float(torch.finfo(torch.bfloat16).max)
STEEPEST = {"int8": 0x7F7F - (7 << 7), "int4": 0x7F7F - (3 << 7)}
"""Bits of the largest scale allowed."""
TINY = 2.0**-132
"""What is lost where numbers are too small to have all their bits."""


class Row(NamedTuple):
    """One row, read as a stranger would who has only the page."""

    scales: list[float]
    channels: tuple[int, ...]
    kept: list[float]
    levels: list[int]

    def value(self, channel: int, group: int) -> float:
        if channel in self.channels:
            return self.kept[self.channels.index(channel)]
        return self.levels[channel] * self.scales[channel // group]


def bfloat16(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def row_bytes(name: str, size: int) -> int:
    groups = math.ceil(size / GROUP[name])
    return 2 * groups + 4 * min(KEPT, size) + groups * GROUP[name] * BITS[name] // 8


def read(name: str, data: bytes, size: int) -> Row:
    groups, kept = math.ceil(size / GROUP[name]), min(KEPT, size)
    scales = struct.unpack_from(f"<{groups}H", data)
    channels = struct.unpack_from(f"<{kept}H", data, 2 * groups)
    values = struct.unpack_from(f"<{kept}H", data, 2 * groups + 2 * kept)
    rest = data[2 * groups + 4 * kept :]
    if BITS[name] == 8:
        levels = list(struct.unpack(f"<{len(rest)}b", rest))
    else:
        levels = [half - 8 for byte in rest for half in (byte & 15, byte >> 4)]
    return Row([bfloat16(bits) for bits in scales], channels, [bfloat16(bits) for bits in values], levels)


def rows_of(name: str, data: bytes, size: int) -> list[Row]:
    step = row_bytes(name, size)
    assert len(data) % step == 0
    return [read(name, data[at : at + step], size) for at in range(0, len(data), step)]


@st.composite
def states(draw: st.DrawFn) -> NDArray[np.float32]:
    """[T, D], anything finite that bfloat16 reaches: subnormals, zeros, ties, a few channels far above the rest."""
    shape = draw(st.tuples(st.integers(1, 4), SIZES))
    edge = draw(st.sampled_from([1e-42, 1e-6, 1.0, 60.0, 1e5, LARGEST]))
    edge = float(np.float32(edge))
    values = draw(arrays.arrays(np.float32, shape, elements=st.floats(-edge, edge, width=32)))
    if draw(st.booleans()):
        values[:, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from([2.3e4, -2.3e4, LARGEST, -LARGEST]))
    return values


@pytest.mark.parametrize("name", NAMES)
@given(values=states())
def test_every_value_is_as_near_as_the_page_says(name: str, values: NDArray[np.float32]) -> None:
    codec, size = CODECS.get(name), values.shape[1]
    data = codec.encode(torch.from_numpy(values))
    decoded = codec.decode(data, size)
    assert decoded.shape == values.shape
    assert decoded.dtype is torch.float32
    top = 2 ** (BITS[name] - 1) - 1
    for row, original, found in zip(rows_of(name, data, size), values.tolist(), decoded.tolist(), strict=True):
        smallest_kept = min(abs(original[channel]) for channel in row.channels)
        for channel in range(size):
            assert found[channel] == np.float32(row.value(channel, GROUP[name]))
            error = abs(found[channel] - original[channel])
            if channel in row.channels:
                assert error <= abs(original[channel]) * 2**-8 + TINY
            else:
                assert abs(original[channel]) <= smallest_kept
                half = 1.0 if row.levels[channel] == top else 0.5
                assert error <= abs(row.scales[channel // GROUP[name]]) * half * (1 + 1e-4) + TINY


@pytest.mark.parametrize("name", NAMES)
@given(values=states())
def test_a_row_as_a_whole_stays_within_the_stated_precision(name: str, values: NDArray[np.float32]) -> None:
    codec = CODECS.get(name)
    exact = values.astype(np.float64)
    error = codec.decode(codec.encode(torch.from_numpy(values)), values.shape[1]).double().numpy() - exact
    normal = np.linalg.norm(exact, axis=1) > 1e-30
    assert (
        np.linalg.norm(error, axis=1)[normal] <= codec.precision * np.linalg.norm(exact, axis=1)[normal] * 1.0001
    ).all()


@pytest.mark.parametrize("name", NAMES)
@given(values=states())
def test_a_row_is_encoded_by_itself_into_a_fixed_number_of_bytes(name: str, values: NDArray[np.float32]) -> None:
    codec, size = CODECS.get(name), values.shape[1]
    together = codec.encode(torch.from_numpy(values))
    assert codec.row_bytes(size) == row_bytes(name, size)
    assert together == b"".join(codec.encode(torch.from_numpy(values[i : i + 1])) for i in range(len(values)))
    assert len(together) == len(values) * codec.row_bytes(size)


@pytest.mark.parametrize(("name", "size", "expected"), [("int8", 576, 626), ("int4", 576, 356), ("int8", 4096, 4256)])
def test_bytes_of_a_row(name: str, size: int, expected: int) -> None:
    assert CODECS.get(name).row_bytes(size) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_massive_channel_takes_nothing_from_its_neighbours(name: str) -> None:
    """The first position of SmolLM2-135M after 28 layers has one value of −22,600 among tens."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(16, 576, generator=generator) * 10
    massive = plain.clone()
    massive[:, 507] = -22_600
    codec = CODECS.get(name)
    errors = [codec.decode(codec.encode(rows), 576) - rows for rows in (plain, massive)]
    others = torch.arange(576) != 507
    assert errors[1][:, others].norm() < 1.1 * errors[0][:, others].norm()
    assert errors[1][:, 507].abs().max() < 22_600 * 2**-8


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    codec = CODECS.get(name)
    decoded = codec.decode(codec.encode(torch.zeros(3, 100)), 100)
    assert decoded.tolist() == torch.zeros(3, 100).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_any_layout_and_dtype_is_taken(name: str) -> None:
    codec = CODECS.get(name)
    values = torch.arange(-100.0, 100.0).view(2, 100)
    expected = codec.encode(values)
    for given_as in (
        values.double(),
        values.bfloat16(),
        values.half(),
        values.t().contiguous().t(),
        values.repeat(1, 2)[:, :100],
    ):
        assert codec.encode(given_as) == expected  # fmt: skip
    assert codec.encode(values.requires_grad_()) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e300])
@pytest.mark.parametrize("at", [0, 63, 64, 99, 199])
def test_a_value_it_cannot_carry_is_refused_anywhere(name: str, bad: float, at: int) -> None:
    values = torch.ones(2, 100, dtype=torch.float64)
    values.view(-1)[at] = bad
    with pytest.raises(NonFiniteError, match=name):
        CODECS.get(name).encode(values)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_values_pass_however_many(name: str) -> None:
    codec = CODECS.get(name)
    values = torch.full((2, 100), LARGEST)
    values[1] = -LARGEST
    assert codec.decode(codec.encode(values), 100).tolist() == values.tolist()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_bytes_give_finite_values_or_a_typed_error(name: str, data: st.DataObject) -> None:
    """Among them rows with channels in order, which random bytes hardly ever have."""
    codec, size = CODECS.get(name), data.draw(SIZES)
    row = bytearray(data.draw(st.binary(min_size=codec.row_bytes(size), max_size=codec.row_bytes(size))))
    if data.draw(st.booleans()):
        kept, groups = min(KEPT, size), math.ceil(size / GROUP[name])
        channels = data.draw(
            st.lists(st.integers(0, size), min_size=kept, max_size=kept, unique=data.draw(st.booleans()))
        )
        struct.pack_into(f"<{kept}H", row, 2 * groups, *sorted(channels))
        scales = data.draw(st.lists(st.integers(0, 0x3F00) | st.integers(0, 0xFFFF), min_size=groups, max_size=groups))
        struct.pack_into(f"<{groups}H", row, 0, *scales)
    try:
        decoded = codec.decode(bytes(row), size)
    except (FrameError, NonFiniteError):
        return
    assert decoded.shape == (1, size)
    assert torch.isfinite(decoded).all()
    understood = read(name, bytes(row), size)
    assert decoded[0].tolist() == [np.float32(understood.value(channel, GROUP[name])) for channel in range(size)]


def spoiled(name: str, offset: int, value: int) -> bytes:
    """A row of 100 ones with two of its bytes changed."""
    row = bytearray(CODECS.get(name).encode(torch.ones(1, 100)))
    struct.pack_into("<H", row, offset, value)
    return bytes(row)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_scales_and_kept_values_up_to_the_largest_pass_and_not_beyond(name: str, sign: int) -> None:
    codec, kept = CODECS.get(name), 2 * math.ceil(100 / GROUP[name]) + 2 * KEPT
    for offset, largest in ((0, STEEPEST[name]), (kept, 0x7F7F)):
        assert torch.isfinite(codec.decode(spoiled(name, offset, sign | largest), 100)).all()
        for beyond in (largest + 1, 0x7F80, 0x7F81, 0x7FFF):
            with pytest.raises(NonFiniteError):
                codec.decode(spoiled(name, offset, sign | beyond), 100)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channel", [100, 0xFFFF])
def test_channels_that_are_not_there_are_refused(name: str, channel: int) -> None:
    last = 2 * math.ceil(100 / GROUP[name]) + 2 * (KEPT - 1)
    with pytest.raises(FrameError, match="ascending below 100"):
        CODECS.get(name).decode(spoiled(name, last, channel), 100)


@pytest.mark.parametrize("name", NAMES)
def test_channels_named_twice_or_out_of_order_are_refused(name: str) -> None:
    first = 2 * math.ceil(100 / GROUP[name])
    second = read(name, CODECS.get(name).encode(torch.ones(1, 100)), 100).channels[1]
    for channel in (second, second + 1):
        with pytest.raises(FrameError, match="ascending"):
            CODECS.get(name).decode(spoiled(name, first, channel), 100)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", [1, 2, -1])
def test_ragged_and_empty_payloads_are_refused(name: str, rest: int) -> None:
    codec = CODECS.get(name)
    with pytest.raises(FrameError, match="no whole number"):
        codec.decode(bytes(3 * codec.row_bytes(8) + rest), 8)
    with pytest.raises(FrameError, match="no whole number"):
        codec.decode(b"", 8)


@pytest.mark.parametrize("name", NAMES)
def test_the_tensor_does_not_alias_the_buffer(name: str) -> None:
    codec = CODECS.get(name)
    buffer = bytearray(codec.encode(torch.ones(1, 100)))
    decoded = codec.decode(memoryview(buffer), 100)
    buffer[:] = bytes(len(buffer))
    assert decoded.tolist() == torch.ones(1, 100).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_more_channels_than_16_bits_number_are_refused(name: str) -> None:
    assert CODECS.get(name).row_bytes(1 << 16)
    with pytest.raises(InputError, match="65536 channels, not 65537"):
        CODECS.get(name).row_bytes((1 << 16) + 1)
