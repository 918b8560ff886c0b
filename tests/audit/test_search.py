"""Patterns are found wherever they are, and only there."""

from __future__ import annotations

import base64
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.audit import nearest
from cutlayer.audit.nearest import nearest_embeddings, share_identified
from cutlayer.audit.needles import MIN_BYTES, Needle, embedding_needles, id_needles, logit_needles, text_needles
from cutlayer.audit.search import Haystack, Searcher, search
from cutlayer.errors import InputError

BIG_IDS = [128000, 9906, 11, 1268, 527, 499, 3432, 30, 128009, 882]
PADDING = bytes(range(200, 211))


def occurrences(data: bytes, pattern: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(pattern, i)]


# Two letters only, so that partial and overlapping matches are common.
_bytes = st.lists(st.sampled_from([0, 1]), max_size=60).map(bytes)
_pattern = st.lists(st.sampled_from([0, 1]), min_size=4, max_size=12).map(bytes)


@given(data=_bytes, patterns=st.lists(_pattern, max_size=6, unique=True))
def test_finds_what_a_plain_scan_finds(data: bytes, patterns: list[bytes]) -> None:
    needles = [Needle(str(i), pattern) for i, pattern in enumerate(patterns)]
    found = sorted((hit.offset, hit.what) for hit in Searcher(needles).find(data))
    assert found == sorted((at, needle.what) for needle in needles for at in occurrences(data, needle.data))


@pytest.mark.parametrize("offset", range(17))
def test_at_every_alignment(offset: int) -> None:
    pattern = bytes(range(1, 14))
    data = b"\xff" * offset + pattern
    assert [hit.offset for hit in Searcher([Needle("x", pattern)]).find(data)] == [offset]
    assert not Searcher([Needle("x", pattern)]).find(data[:-1])


def test_too_short_a_pattern_is_refused() -> None:
    with pytest.raises(InputError, match="3 bytes"):
        Searcher([Needle("x", b"abc")])


def test_accidents_are_counted_by_length() -> None:
    searcher = Searcher([Needle("a", b"12345"), Needle("b", b"12346"), Needle("c", b"12345678")])
    assert searcher.count == 3
    assert searcher.accidents(1 << 20) == pytest.approx((1 << 20) * (2 / 256**5 + 1 / 256**8))


def test_places_name_each_kind_once_per_haystack() -> None:
    needles = [Needle("x", b"abcdefgh"), Needle("x", b"bcdefghi")]
    places, searcher, size = search([Haystack("one", b"_abcdefghi"), Haystack("two", b"")], needles)
    assert places == ["x in one at byte 1"]
    assert (searcher.count, size) == (2, 10)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + _varint(number // 128)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("32 bits, little", struct.pack("<10i", *BIG_IDS)),
        ("32 bits, big", struct.pack(">10I", *BIG_IDS)),
        ("64 bits, little", struct.pack("<10q", *BIG_IDS)),
        ("64 bits, big", struct.pack(">10Q", *BIG_IDS)),
        ("16 bits, little", struct.pack("<7H", *BIG_IDS[1:8])),
        ("16 bits, big", struct.pack(">7H", *BIG_IDS[1:8])),
        ("float32, little", struct.pack("<10f", *BIG_IDS)),
        ("MessagePack", b"".join(b"\xcd" + struct.pack(">H", i) if i > 255 else bytes([i]) for i in BIG_IDS[1:8])),
        ("varint", b"".join(map(_varint, BIG_IDS))),
        ("comma and space", str(BIG_IDS).encode()),
        ("decimal, space", " ".join(map(str, BIG_IDS)).encode()),
    ],
)
def test_token_ids_are_found_in_every_encoding(name: str, data: bytes) -> None:
    places, _, _ = search([Haystack("h", PADDING + data + PADDING)], id_needles(BIG_IDS, "me"))
    assert len(places) == 1
    assert name in places[0]


def test_patterns_are_long_and_varied_enough() -> None:
    for ids in (BIG_IDS, [1, 2, 3, 4, 5, 6, 7, 8, 9], [0] * 20, [7, 8] * 9, [3, 4, 5]):
        for needle in id_needles(ids, "me"):
            assert len(needle.data) >= MIN_BYTES
    assert not list(id_needles([0] * 40, "me"))
    assert not list(id_needles([1, 2, 3], "me"))
    assert not list(text_needles("a a", "me"))
    assert not list(text_needles("-" * 50, "me"))
    assert not list(embedding_needles(torch.zeros(5, 64), [0, 1]))


@pytest.mark.parametrize("start", range(0, 40, 7))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_stretch_of_text_is_found(start: int, encoding: str) -> None:
    text = "Für Ada: 4711 Taler, zahlbar in Köln am 3. 5. — ✓ nicht übertragbar, 12 % p. a."
    data = PADDING + text[start : start + 24].encode(encoding)
    assert search([Haystack("h", data)], text_needles(text, "me"))[0]


@pytest.mark.parametrize("size", [30, 2000])
@pytest.mark.parametrize("shift", range(3))
def test_base64_is_found_at_every_alignment(size: int, shift: int) -> None:
    text = "".join(chr(33 + i * i % 89) for i in range(size))
    data = base64.b64encode(b"!" * shift + text.encode())
    places = search([Haystack("h", data)], text_needles(text, "me"))[0]
    assert any("base64" in place for place in places)


def test_unrelated_floats_hold_none_of_it() -> None:
    torch.manual_seed(0)
    data = torch.randn(200, 576).numpy().tobytes()
    needles = [*id_needles(BIG_IDS, "me"), *text_needles("What is the capital of France, please?", "me")]
    assert search([Haystack("h", data)], needles)[0] == []


def test_logits_around_a_peak_at_the_edge() -> None:
    logits = torch.arange(32.0)
    data = {needle.what: needle.data for needle in logit_needles([logits], [31])}
    assert data["logits (fp32)"] == logits[-16:].numpy().tobytes()
    assert len(data["logits (bf16)"]) == 64


def test_nearest_embedding_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrix, rows = torch.randn(50, 8), torch.randn(9, 8)
    rows[4] = 3 * matrix[33]
    monkeypatch.setattr(nearest, "_BLOCK_ROWS", 7)
    near = nearest_embeddings(rows, matrix)
    whole = torch.nn.functional.cosine_similarity(rows[:, None], matrix[None], dim=-1)
    torch.testing.assert_close(near.cosine, whole.max(dim=-1).values)
    assert near.token.tolist() == whole.argmax(dim=-1).tolist()
    assert near.token[4] == 33
    assert near.cosine[4] > 0.9999
    assert share_identified(near.token, [0, 0, 0, 0, 33, 0, 0, 0, 99]) >= 1 / 9


@pytest.mark.parametrize("rows", [torch.empty(0, 8), torch.zeros(3, 9), torch.zeros(8)], ids=str)
def test_nothing_to_compare_is_an_error_not_a_zero(rows: torch.Tensor) -> None:
    with pytest.raises(InputError):
        nearest_embeddings(rows, torch.randn(5, 8))
    with pytest.raises(InputError):
        share_identified(torch.zeros(0), [])
