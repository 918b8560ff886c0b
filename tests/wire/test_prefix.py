"""Prefix digests depend on the rows alone, not on how they came or what was there before."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import ProtocolError
from cutlayer.wire.prefix import PrefixDigests

ROW = 4
rows = st.lists(st.binary(min_size=ROW, max_size=ROW), max_size=20)


def fresh(held: list[bytes]) -> PrefixDigests:
    digests = PrefixDigests()
    digests.extend(b"".join(held), ROW)
    return digests


def all_of(digests: PrefixDigests) -> list[bytes]:
    return [digests.at(position) for position in range(len(digests) + 1)]


@given(before=rows, after=rows, data=st.data())
def test_rollback_and_extend_equal_a_fresh_extend(before: list[bytes], after: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(before)))
    digests = fresh(before)
    digests.rollback(position)
    digests.extend(b"".join(after), ROW)
    assert all_of(digests) == all_of(fresh(before[:position] + after))


@given(held=rows, data=st.data())
def test_chunking_makes_no_difference(held: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(held)))
    digests = fresh(held[:at])
    digests.extend(memoryview(b"".join(held[at:])), ROW)
    assert all_of(digests) == all_of(fresh(held))


@given(held=rows.filter(bool), data=st.data())
def test_another_row_changes_every_later_digest_and_no_earlier_one(held: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(held) - 1))
    other = data.draw(st.binary(min_size=ROW, max_size=ROW).filter(lambda row: row != held[at]))
    mine, theirs = all_of(fresh(held)), all_of(fresh([*held[:at], other, *held[at + 1 :]]))
    assert mine[: at + 1] == theirs[: at + 1]
    assert all(a != b for a, b in zip(mine[at + 1 :], theirs[at + 1 :], strict=True))


def test_the_formula() -> None:
    first = blake2b(b"abcd", digest_size=8, key=bytes(8)).digest()
    assert all_of(fresh([b"abcd", b"efgh"])) == [bytes(8), first, blake2b(b"efgh", digest_size=8, key=first).digest()]


def test_the_formula_of_branches() -> None:
    """Rows 1 and 2 both follow row 0, row 3 follows row 2."""

    def keyed(content: bytes, key: bytes) -> bytes:
        return blake2b(content, digest_size=8, key=key).digest()

    digests = PrefixDigests()
    digests.extend(b"aaaabbbbccccdddd", ROW, [1, 1, 2, 1])
    root = keyed(b"aaaa", bytes(8))
    one, two = keyed(b"bbbb", root), keyed(b"cccc", root)
    assert all_of(digests) == [
        bytes(8), root, one, keyed(two, one), keyed(two + keyed(b"dddd", two), one)
    ]  # fmt: skip
    assert digests.after(1, [1, 2]) == fresh([b"aaaa", b"cccc", b"dddd"]).at(3)


@given(held=rows.filter(bool), data=st.data())
def test_a_kept_path_leaves_the_digests_of_a_chain(held: list[bytes], data: st.DataObject) -> None:
    """Whatever lay beside it."""
    backs = [data.draw(st.integers(1, min(3, i + 1))) for i in range(len(held))]
    digests = PrefixDigests()
    digests.extend(b"".join(held), ROW, backs)
    path, slot = [], data.draw(st.integers(0, len(held) - 1))
    while slot >= 0:
        path.append(slot)
        slot -= backs[slot]
    path.reverse()
    expected = fresh([held[slot] for slot in path])
    assert digests.after(0, path) == expected.at(len(path))
    digests.keep(0, path)
    assert all_of(digests) == all_of(expected)


@given(held=rows.filter(lambda held: len(held) > 2), data=st.data())
def test_what_lies_beside_a_path_changes_the_digest_of_all(held: list[bytes], data: st.DataObject) -> None:
    """Rows that all follow the first one: another row, or another parent, and no step goes on from them."""
    digests, other, moved = PrefixDigests(), PrefixDigests(), PrefixDigests()
    backs = range(1, len(held))
    digests.extend(b"".join(held), ROW, [1, *backs])
    at = data.draw(st.integers(1, len(held) - 1))
    changed = [*held[:at], bytes(byte ^ 1 for byte in held[at]), *held[at + 1 :]]
    other.extend(b"".join(changed), ROW, [1, *backs])
    moved.extend(b"".join(held), ROW, [1, 1, 1, *backs[2:]])
    assert len({one.at(len(held)) for one in (digests, other, moved)}) == 3


@pytest.mark.parametrize("position", [-1, 3])
def test_positions_never_seen_are_refused(position: int) -> None:
    digests = fresh([b"abcd", b"efgh"])
    with pytest.raises(ProtocolError):
        digests.at(position)
    with pytest.raises(ProtocolError):
        digests.rollback(position)
    assert len(digests) == 2
