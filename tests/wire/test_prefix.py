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


@pytest.mark.parametrize("position", [-1, 3])
def test_positions_never_seen_are_refused(position: int) -> None:
    digests = fresh([b"abcd", b"efgh"])
    with pytest.raises(ProtocolError):
        digests.at(position)
    with pytest.raises(ProtocolError):
        digests.rollback(position)
    assert len(digests) == 2
