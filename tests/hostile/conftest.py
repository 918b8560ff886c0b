"""Valid frames to start from, and ways to spoil them. Everything random comes from a seed."""

from __future__ import annotations

import logging
import random
import struct
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog

from cutlayer.errors import RemoteCode
from cutlayer.types import Cut
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A line for each of thousands of refusals would bury a failing test's own words; internal errors still show.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

PREFIX = struct.Struct("<BH")

VALID = [
    frames.encode(frames.Open(1, "f" * 32, Cut(2, 4, 6), "fp32", 0)),
    frames.encode(frames.Opened(bytes(16), 1, 8192, 512)),
    frames.encode(frames.Resume(bytes(range(16)), 2, 70)),
    frames.encode(frames.Resumed(2, 70, bytes(8))),
    frames.encode(frames.Step(1, 0, 2, 0, bytes(8)), bytes(16)),
    frames.encode(frames.Step(300, 4000, 1, 1, bytes(range(8))), bytes(8)),
    frames.encode(frames.Step(2, 5, 3, 0, bytes(8), bytes([0b101]), bytes([1, 2, 1])), bytes(24)),
    frames.encode(frames.Result(1, 0, 2, 900), bytes(16)),
    frames.encode(frames.Close()),
    frames.encode(frames.Closed()),
    frames.encode(frames.Info()),
    frames.encode(
        frames.InfoReply(
            1,
            "0.1",
            "tiny",
            "f" * 32,
            Cut(2, 4, 6),
            "float32",
            "cpu",
            32,
            256,
            ["bf16", "fp32"],
            1.7e9,
            ["a.b", "c.d"],
            2,
        )
    ),
    frames.encode(frames.Failure(RemoteCode.LIMIT, "too many", False)),
]

# MessagePack markers whose lengths are a promise nobody has to keep: str, bin, array, map, extension of 32 bits
PROMISES = [
    bytes([marker]) + length
    for marker in (0xDB, 0xC6, 0xDD, 0xDF, 0xC9)
    for length in (b"\xff" * 4, b"\x7f\xff\xff\xff")
]
VALUES = [
    None, True, -1, 0, 1, 255, 65535, 65536, 1 << 24, 1 << 32, (1 << 64) - 1, -(1 << 63), 1.5, float("nan"), float("inf"),
    "", "x" * 257, "\x1b[31m", b"", bytes(8), bytes(16), bytes(300), [], [1, 2, 3], [3, 2, 1], [0, 1, 1], ["x"] * 65,
    {}, {"a": 1}, msgspec.msgpack.Ext(1, b"x"), msgspec.msgpack.Ext(-1, b"\0" * 4),
]  # fmt: skip


def framed(kind: int, body: bytes, payload: bytes = b"") -> bytes:
    return PREFIX.pack(kind, min(len(body), 0xFFFF)) + body + payload


def garbage(chance: random.Random) -> bytes:
    """Random bytes, half of the time with a known kind in front."""
    data = chance.randbytes(chance.choice([0, 1, 2, 3, 4, 20, 100, 2000]))
    return bytes([chance.randint(1, 15)]) + data if chance.random() < 0.5 else data


def flipped(chance: random.Random) -> bytes:
    """A valid frame with a few bytes changed."""
    data = bytearray(chance.choice(VALID))
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def truncated(chance: random.Random) -> bytes:
    data = chance.choice(VALID)
    return data[: chance.randrange(len(data))]


def spliced(chance: random.Random) -> bytes:
    """The beginning of one frame and the end of another."""
    one, two = chance.choice(VALID), chance.choice(VALID)
    return one[: chance.randrange(len(one))] + two[chance.randrange(len(two)) :]


def wrong_length(chance: random.Random) -> bytes:
    """A valid frame that lies about the length of its header."""
    data = bytearray(chance.choice(VALID))
    struct.pack_into(
        "<H", data, 1, chance.choice([0, 1, len(data) - 4, len(data), 255, 256, 0xFFFF, chance.randrange(0x10000)])
    )
    return bytes(data)


def wrong_kind(chance: random.Random) -> bytes:
    return bytes([chance.randrange(256)]) + chance.choice(VALID)[1:]


def wrong_types(chance: random.Random) -> bytes:
    """A valid header with some of its fields replaced by values of any type and size."""
    data = chance.choice(VALID)
    kind, length = PREFIX.unpack_from(data)
    fields = msgspec.msgpack.decode(data[3 : 3 + length])
    for _ in range(chance.choice([1, 1, 2])):
        if fields:
            fields[chance.randrange(len(fields))] = chance.choice(VALUES)
    if chance.random() < 0.2:
        fields.insert(chance.randrange(len(fields) + 1), chance.choice(VALUES))
    return framed(kind, msgspec.msgpack.encode(fields), data[3 + length :])


def nested(chance: random.Random) -> bytes:
    """Arrays or maps in each other, as deep as a header is long, instead of the header or of one of its fields."""
    depth = chance.choice([1, 10, 1000, 0xF000])
    bomb = chance.choice([b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\x81"]) * depth
    if chance.random() < 0.5:
        return framed(chance.choice(list(frames.Kind)), bomb[:0xFFFF])
    data = chance.choice(VALID)
    return framed(data[0], (data[3 : chance.randrange(3, len(data)) + 1] + bomb)[:0xFFFF])


def promising(chance: random.Random) -> bytes:
    """A length of gigabytes where a field begins."""
    data = chance.choice(VALID)
    _, length = PREFIX.unpack_from(data)
    body = data[3 : 3 + length]
    at = chance.randrange(len(body) + 1)
    return framed(data[0], body[:at] + chance.choice(PROMISES) + body[at:])


SPOILERS: list[Callable[[random.Random], bytes]] = [
    garbage, flipped, truncated, spliced, wrong_length, wrong_kind, wrong_types, nested, promising,
]  # fmt: skip


@pytest.fixture(params=SPOILERS, ids=lambda spoiler: spoiler.__name__)
def spoiled(request: pytest.FixtureRequest) -> Callable[[int], Iterator[bytes]]:
    """How many → that many spoiled frames of one sort."""

    def make(count: int) -> Iterator[bytes]:
        chance = random.Random(request.param.__name__)
        return (request.param(chance) for _ in range(count))

    return make


@pytest.fixture
def spoiled_any_way() -> Callable[[int, int], Iterator[bytes]]:
    """(how many, seed) → spoiled frames of all sorts."""

    def make(count: int, seed: int) -> Iterator[bytes]:
        chance = random.Random(seed)
        return (chance.choice(SPOILERS)(chance) for _ in range(count))

    return make
