"""Frames: every header round-trips, every limit holds, and a decode step costs few bytes beyond its payload."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import FrameError, RemoteCode
from cutlayer.types import DTYPE_NAMES, Cut
from cutlayer.wire import frames
from cutlayer.wire.bitmap import bitmap, marked
from cutlayer.wire.frames import Kind
from cutlayer.wire.printable import printable

PREFIX_BYTES = 3
# What WebSocket (RFC 6455, 5.2: 2 + 2 for payloads of 126 to 65535 bytes, and 4 of mask from clients) and TLS 1.3
# (RFC 8446, 5.2: 5 of record header, 1 of content type, 16 of tag) add to one message each way
WEBSOCKET_BYTES = 8 + 4
TLS_BYTES = 22 + 22
MOST_OVERHEAD = 96

u32 = st.integers(0, 0xFFFF_FFFF)
sequences = st.integers(0, frames.SEQUENCES - 1)
positions = st.integers(0, frames.MAX_POSITIONS)
counts = st.integers(1, frames.MAX_STEP_POSITIONS)
digests = st.binary(min_size=frames.DIGEST_BYTES, max_size=frames.DIGEST_BYTES)
session_ids = st.binary(min_size=frames.SESSION_BYTES, max_size=frames.SESSION_BYTES)
names = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=256)
distances = st.binary(max_size=300)
bits = st.binary(max_size=frames.MAX_STEP_POSITIONS // 8)
payloads = st.binary(max_size=64)


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    layers = draw(st.integers(1, 200))
    start = draw(st.integers(0, layers - 1))
    return Cut(start, draw(st.integers(start + 1, layers)), layers)


HEADERS: dict[Kind, st.SearchStrategy[frames.Header]] = {
    Kind.OPEN: st.builds(frames.Open, u32, names, cuts(), names, positions),
    Kind.OPENED: st.builds(frames.Opened, session_ids, u32, positions, counts),
    Kind.RESUME: st.builds(frames.Resume, session_ids, u32, positions),
    Kind.RESUMED: st.builds(frames.Resumed, u32, positions, digests),
    Kind.STEP: st.builds(
        frames.Step, sequences, positions, counts, st.integers(0, 1), digests, bits, distances
    ),
    Kind.RESULT: st.builds(frames.Result, sequences, positions, counts, u32),
    Kind.CLOSE: st.builds(frames.Close),
    Kind.CLOSED: st.builds(frames.Closed),
    Kind.INFO: st.builds(frames.Info),
    Kind.INFO_REPLY: st.builds(
        frames.InfoReply, u32, names, names, names, cuts(), st.sampled_from(DTYPE_NAMES), names,
        st.integers(1, 1 << 20), positions, st.lists(names, max_size=4), st.floats(0, 1e11), st.lists(names, max_size=4), u32,
    ),
    Kind.ERROR: st.builds(frames.Failure, st.sampled_from(RemoteCode), names, st.booleans()),
}  # fmt: skip


def test_every_kind_is_covered() -> None:
    assert set(HEADERS) == set(Kind) == set(frames.HEADERS)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@given(data=st.data())
def test_round_trip(kind: Kind, data: st.DataObject) -> None:
    header = data.draw(HEADERS[kind])
    payload = data.draw(payloads) if kind in {Kind.STEP, Kind.RESULT} else b""
    encoded = frames.encode(header, payload)
    decoded = frames.decode(encoded)
    assert decoded.header == header
    assert type(decoded.header) is type(header)
    assert bytes(decoded.payload) == payload
    assert encoded[0] == kind
    assert int.from_bytes(encoded[1:3], "little") == len(encoded) - PREFIX_BYTES - len(payload)


@given(header=st.one_of(*HEADERS.values()), cut=st.data())
def test_every_truncation_of_prefix_or_header_is_refused(header: frames.Header, cut: st.DataObject) -> None:
    encoded = frames.encode(header)
    with pytest.raises(FrameError):
        frames.decode(encoded[: cut.draw(st.integers(0, len(encoded) - 1))])


def test_the_payload_is_a_view_and_no_copy() -> None:
    buffer = bytearray(frames.encode(frames.Result(1, 0, 1, 0), b"abcd"))
    payload = frames.decode(buffer).payload
    buffer[-1] = ord("z")
    assert bytes(payload) == b"abcz"


@given(
    sequence=st.integers(0, 1 << 16),
    base=st.integers(0, 8191),
    compute_us=u32,
    row=st.integers(126, 0xFFFF - 32),
)
def test_a_decode_step_costs_few_bytes_beyond_its_payload(sequence: int, base: int, compute_us: int, row: int) -> None:
    """Both directions together, framing and encryption included, for rows that fit one TLS record."""
    number = sequence % frames.SEQUENCES
    payload = bytes(row)
    step = frames.encode(frames.Step(number, base, 1, 0, bytes(8)), payload)
    result = frames.encode(frames.Result(number, base, 1, compute_us), payload)
    overhead = len(step) + len(result) - 2 * len(payload) + WEBSOCKET_BYTES + TLS_BYTES
    assert overhead <= MOST_OVERHEAD


@given(
    base=positions,
    other_base=positions,
    count=st.integers(2, 64),
    compute_us=u32,
    other_us=u32,
    kept=bits,
    other=st.data(),
)
def test_the_length_of_a_step_of_several_rows_tells_nothing_but_their_number(
    base: int, other_base: int, count: int, compute_us: int, other_us: int, kept: bytes, other: st.DataObject
) -> None:
    """And how many were sent before: those are the bits, whichever of them are set."""
    others = other.draw(st.binary(min_size=len(kept), max_size=len(kept)))
    steps = [frames.Step(7, base, count, 0, bytes(8), kept), frames.Step(7, other_base, count, 0, bytes(8), others)]
    results = [frames.Result(7, base, count, compute_us), frames.Result(7, other_base, count, other_us)]
    for alike in (steps, results):
        assert len({len(frames.encode(header)) for header in alike}) == 1


@given(rows=st.sets(st.integers(0, 99)), count=st.integers(100, 130))
def test_a_bitmap_names_rows_and_is_as_long_as_there_are_any(rows: set[int], count: int) -> None:
    bits = bitmap(rows, count)
    assert marked(bits) == sorted(rows)
    assert len(bits) == (count + 7) // 8
    assert [bool(bits[row // 8] & 1 << row % 8) for row in range(100)] == [row in rows for row in range(100)]
    step = frames.Step(1, 200, 1, 0, bytes(8), bits)
    assert (step.path, step.anchor) == (sorted(rows), 200 - len(rows))


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_the_last_fields_of_a_step_may_be_left_out(left_out: int) -> None:
    fields = [7, 9, 1, 0, bytes(8), b"", b""]
    body = msgspec.msgpack.encode(fields[: len(fields) - left_out])
    step = frames.decode(bytes([Kind.STEP]) + len(body).to_bytes(2, "little") + body).header
    assert step == frames.Step(7, 9, 1, 0, bytes(8))


def test_a_header_that_does_not_fit_its_length_field_is_not_sent() -> None:
    reply = frames.InfoReply(1, "0", "m", "f", Cut(0, 1, 1), "float32", "cpu", 8, 8, [], 0.0, ["x" * 256] * 1024, 1024)
    with pytest.raises(FrameError, match="exceeds 65535"):
        frames.encode(reply)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.STEP, [0, 0, 0, 0, bytes(8)]),  # no position
        (Kind.STEP, [0, 0, frames.MAX_STEP_POSITIONS + 1, 0, bytes(8)]),
        (Kind.STEP, [0, frames.MAX_POSITIONS + 1, 1, 0, bytes(8)]),
        (Kind.STEP, [frames.SEQUENCES, 0, 1, 0, bytes(8)]),
        (Kind.STEP, [-1, 0, 1, 0, bytes(8)]),
        (Kind.STEP, [0, 0, 1, 2, bytes(8)]),  # unknown flag
        (Kind.STEP, [0, 0, 1, 0, bytes(7)]),
        (Kind.STEP, [0, 0, 1, 0, "eight ch"]),
        (Kind.STEP, [0, 0, True, 0, bytes(8)]),
        (Kind.STEP, [0, 0, 1.0, 0, bytes(8)]),
        (Kind.STEP, [0, 0, 1, 0]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), 0]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), 1, b""]),  # bits and distances are bytes
        (Kind.STEP, [0, 0, 1, 0, bytes(8), [0], b""]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), b"", "\x01"]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), b"", None]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), bytes(frames.MAX_STEP_POSITIONS // 8 + 1), b""]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), b"", bytes(frames.MAX_STEP_POSITIONS + 1)]),
        (Kind.STEP, [0, 0, 1, 0, bytes(8), b"", b"", b""]),
        (Kind.STEP, {"sequence": 0}),
        (Kind.STEP, None),
        (Kind.OPEN, [1, "f" * 257, [0, 1, 1], "fp32", 0]),
        (Kind.OPEN, [1, "f", [1, 1, 1], "fp32", 0]),  # an empty cut
        (Kind.OPEN, [1, "f", [0, 2, 1], "fp32", 0]),
        (Kind.OPEN, [1, "f", [-1, 1, 1], "fp32", 0]),
        (Kind.RESUME, [bytes(15), 1, 0]),
        (Kind.RESUME, [bytes(16), 1 << 32, 0]),
        (Kind.ERROR, ["no such code", "", False]),
        (Kind.ERROR, ["limit", "x" * 1025, False]),
        (Kind.ERROR, ["limit", "", 1]),
        (Kind.CLOSE, [0]),
        (Kind.INFO_REPLY, [1, "", "", "", [0, 1, 1], "float64", "", 8, 8, [], 0.0, [], 0]),
        (Kind.INFO_REPLY, [1, "", "", "", [0, 1, 1], "float32", "", 0, 8, [], 0.0, [], 0]),
        (Kind.INFO_REPLY, [1, "", "", "", [0, 1, 1], "float32", "", 8, 8, [], float("nan"), [], 0]),
        (Kind.INFO_REPLY, [1, "", "", "", [0, 1, 1], "float32", "", 8, 8, [""] * 65, 0.0, [], 0]),
        (Kind.INFO_REPLY, [1, "", "m\x1b[31m", "", [0, 1, 1], "float32", "", 8, 8, [], 0.0, [], 0]),
        (Kind.INFO_REPLY, [1, "", "", "", [0, 1, 1], "float32", "", 8, 8, [], 0.0, ["a", "b\n"], 0]),
    ],
    ids=str,
)  # fmt: skip
def test_headers_outside_the_limits_are_refused(kind: Kind, fields: object) -> None:
    body = msgspec.msgpack.encode(fields)
    with pytest.raises(FrameError, match=f"malformed {kind.name} header"):
        frames.decode(bytes([kind]) + len(body).to_bytes(2, "little") + body)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(Kind)))
def test_unknown_kinds_are_refused(kind: int) -> None:
    with pytest.raises(FrameError, match=f"unknown frame kind {kind}"):
        frames.decode(bytes([kind, 0, 0]))


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.STEP, Kind.RESULT}))
@settings(max_examples=20)
@given(data=st.data())
def test_only_steps_and_results_carry_payload(kind: Kind, data: st.DataObject) -> None:
    with pytest.raises(FrameError, match="payload bytes; it takes none"):
        frames.decode(frames.encode(data.draw(HEADERS[kind])) + b"\0")


@given(st.text(max_size=300))
def test_words_of_a_failure_are_printable_after_decoding(text: str) -> None:
    """Also those of a peer that did not clean them, which is why the header is packed by hand here."""
    body = msgspec.msgpack.encode(["limit", text, False])
    message = frames.decode(bytes([Kind.ERROR]) + len(body).to_bytes(2, "little") + body).header.message
    assert message.isprintable()
    assert len(message) == len(text)
    assert all(a == b for a, b in zip(message, text, strict=True) if b.isprintable())


def test_errors_about_headers_quote_nothing_that_steers_a_terminal() -> None:
    body = msgspec.msgpack.encode(["\x1b]0;owned\x07" * 5000, "", False])
    with pytest.raises(FrameError) as caught:
        frames.decode(bytes([Kind.ERROR]) + len(body).to_bytes(2, "little") + body)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "plain", "Tür – 2×", "模型"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "character",
    ["\x00", "\x07", "\x08", "\n", "\r", "\x1b", "\x7f", "\x9b", "\u200b", "\u202e", "\u2066", "\u2028", "\ufeff"],
)
def test_what_steers_a_terminal_or_the_eye_is_replaced(character: str) -> None:
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"
