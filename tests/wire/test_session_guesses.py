"""Guesses, kept paths and what a resume does to them, rule by rule, each half of the session played by hand.

A step names a path by one bit for each row it might have led through, lowest first: 0b101 is the first and the third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.wire.conftest import HIDDEN, ROW, answer, decoded, digest, opened, rows, run

from cutlayer.errors import ProtocolError, RefusedError, RemoteCode
from cutlayer.wire import frames
from cutlayer.wire.server_session import ServerSession

if TYPE_CHECKING:
    from cutlayer.wire.client_session import ClientSession


def tree_of(client: ClientSession) -> None:
    """Four rows in a chain, then guesses 4 … 8, of which 4, 6 and 8 follow one another:  3 ─ 4 ─ 6 ─ 8, 3 ─ 5, 4 ─ 7."""
    answer(client, client.step(0, rows(4)))
    answer(client, client.step(4, rows(5, 1), parents=bytes([1, 2, 2, 3, 2])))


def grown(server: ServerSession) -> None:
    """As `tree_of`."""
    run(server, 0, rows(4))
    step = frames.Step(2, 4, 5, 0, digest(rows(4)), parents=bytes([1, 2, 2, 3, 2]))
    server.accept(step, memoryview(rows(5, 1)))
    server.commit(step, memoryview(rows(5, 1)))


def row(index: int, seed: int) -> bytes:
    return rows(index + 1, seed)[-ROW:]


KEPT = rows(4) + row(0, 1) + row(2, 1)


# The client's half


def test_a_kept_path_goes_with_the_next_step(client: ClientSession) -> None:
    tree_of(client)
    frame = frames.decode(client.step(7, rows(2, 2), path=bytes([0, 2, 4]), parents=bytes([1, 2])))
    kept = digest(rows(4) + row(0, 1) + row(2, 1) + row(4, 1))
    assert frame.header == frames.Step(3, 7, 2, 0, kept, bytes([0b10101]), bytes([1, 2]))
    assert (frame.header.anchor, frame.header.path) == (4, [0, 2, 4])
    assert bytes(frame.payload) == rows(2, 2)
    assert client.sent == 9


@pytest.mark.parametrize("path", [[0], [1], [0, 2], [0, 3], [0, 2, 4]])
@pytest.mark.parametrize("held", [4, 125, 253])
def test_a_steps_length_tells_nothing_of_the_path(held: int, path: list[int]) -> None:
    """Nor of where it leads to: small positions have shorter numbers elsewhere."""
    client = opened(max_positions=300, max_step_positions=300)
    answer(client, client.step(0, rows(held)))
    answer(client, client.step(held, rows(5, 1), parents=bytes([1, 2, 2, 3, 2])))
    frame = client.step(held + len(path), rows(5, 2), path=path, parents=bytes([1] * 5))
    assert len(frame) == 32 + 5 * ROW


def test_a_path_among_more_rows_than_a_step_can_name_is_not_sent() -> None:
    """It could begin later: all before the first branch stay as they are."""
    client = opened(max_positions=5000, max_step_positions=4096)
    answer(client, client.step(0, rows(4096)))
    answer(client, client.step(4096, rows(2, 1), parents=bytes([1, 2])))
    with pytest.raises(ProtocolError, match="among the 4098 rows from position 0 on"):
        client.step(4097, rows(1, 2), path=range(4097))
    assert decoded(client.step(4097, rows(1, 2), path=[1], parents=bytes([1]))).kept == bytes([0b10])


@pytest.mark.parametrize(
    ("base", "path", "parents", "words"),
    [
        (6, [0, 4], [], "slot 8 of the kept path does not follow slot 4"),
        (6, [2, 0], [], "does not follow"),
        (6, [0, 0], [], "does not follow"),
        (5, [5], [], "does not follow"),
        (7, [0, 2, 200], [], "does not follow"),
        (7, [0], [], "cannot keep a path from position 6: guesses branch from 5 on"),
        (2, [0, 2, 4], [], "cannot roll back to position -1"),
        (9, [], [1, 1], "2 parents for 1 positions"),
        (9, [], [0], "follows one 0 back"),
        (9, [], [256], "follows one 256 back; 1 to 255"),
        (9, [], [-1], "follows one -1 back"),
        (2, [], [4], "follows one 4 back"),
        (6, [0, 300], [], "does not follow"),
        (5, [-1], [], "does not follow"),
    ],
)
def test_what_is_no_path_or_parent_is_not_sent(
    client: ClientSession, base: int, path: list[int], parents: list[int], words: str
) -> None:
    tree_of(client)
    with pytest.raises(ProtocolError, match=words):
        client.step(base, rows(1, 2), path, parents)
    assert (client.sent, client.outstanding) == (9, 0)
    assert decoded(client.step(9, rows(1, 3))).sequence == 3


@pytest.mark.parametrize("arrived", [False, True])
def test_after_a_lost_answer_to_a_path_only_the_path_goes_again(
    client: ClientSession, server: ServerSession, arrived: bool
) -> None:
    """Both agree on everything before the guesses, whether the server kept the path or never heard of it."""
    tree_of(client)
    grown(server)
    lost = frames.decode(client.step(6, rows(1, 2), path=bytes([0, 2])))
    if arrived:
        server.accept(lost.header, lost.payload)
        server.commit(lost.header, lost.payload)
    assert decoded(client.resume()).position == 4
    client.receive(server.resumed(frames.Resume(server.id, 2, 4)))
    silent, again = client.replay(1 << 20)
    assert (decoded(silent.frame).base, decoded(silent.frame).count, silent.silent) == (4, 2, True)
    assert bytes(frames.decode(silent.frame).payload) == row(0, 1) + row(2, 1)
    assert decoded(again.frame) == frames.Step(2, 6, 1, 0, lost.header.digest)


def test_a_step_given_up_may_have_moved_rows_all_the_same(client: ClientSession, server: ServerSession) -> None:
    """It kept a path, and what replaced it goes on from that path. The server heard of neither."""
    tree_of(client)
    grown(server)
    first = client.step(9, rows(1, 2))
    client.step(6, rows(1, 3), path=bytes([0, 2]))
    client.step(6, rows(1, 4))
    assert answer(client, first) is None
    assert decoded(client.resume()).position == 4
    client.receive(server.resumed(frames.Resume(server.id, 2, 4)))
    silent, again = (decoded(replayed.frame) for replayed in client.replay(1 << 20))
    assert (silent.base, silent.count, again.base) == (4, 2, 6)


def test_a_tree_is_replayed_as_a_tree(client: ClientSession) -> None:
    tree_of(client)
    client.step(9, rows(2, 2), parents=bytes([3, 1]))
    client.resume()
    client.receive(frames.encode(frames.Resumed(2, 3, digest(rows(3)))))
    headers = [decoded(again.frame) for again in client.replay(4 * ROW)]
    assert [(step.base, step.count, step.kept, list(step.parents)) for step in headers] == [
        (3, 4, b"", [1, 1, 2, 2]),
        (7, 2, b"", [3, 2]),
        (9, 2, b"", [3, 1]),
    ]


def test_rows_kept_of_a_step_given_up_are_replayed_between_those_that_wait(client: ClientSession) -> None:
    client.step(0, rows(2))
    client.step(2, rows(3, 1), parents=bytes([1, 2, 2]))
    client.step(4, rows(1, 2), path=bytes([0, 2]))
    client.resume()
    client.receive(frames.encode(frames.Resumed(2, 0, bytes(8))))
    replayed = list(client.replay(1 << 20))
    assert [(decoded(again.frame).base, decoded(again.frame).count) for again in replayed] == [(0, 2), (2, 2), (4, 1)]
    assert not any(again.silent for again in replayed)
    assert [answer(client, again.frame) is None for again in replayed] == [False, True, False]
    assert client.outstanding == 0


# The server's half


def test_both_halves_agree_on_a_kept_path(client: ClientSession, server: ServerSession) -> None:
    tree_of(client)
    grown(server)
    step = frames.decode(client.step(6, rows(2, 2), path=bytes([0, 2])))
    server.accept(step.header, step.payload)
    assert server.position == 9
    server.commit(step.header, step.payload)
    assert server._digests.at(8) == client._digests.at(8) == digest(KEPT + rows(2, 2))


@pytest.mark.parametrize(
    "changed",
    [
        {"kept": bytes([0b10001])},  # row 8 does not follow row 4
        {"kept": bytes([0b11])},  # siblings
        {"kept": bytes([0b10100])},  # begins in the air
        {"kept": bytes([0b100001])},  # not held
        {"kept": bytes([0b1, 0b1])},
        {"kept": bytes([0b1, *bytes(510), 0b10000000])},
        {"kept": b"\xff" * 512},
        {"base": 1, "kept": bytes([0b101])},
        {"base": 8, "kept": bytes([0b101])},  # from within the guesses
        {"parents": bytes([1])},
        {"parents": bytes([1, 1, 1])},
        {"parents": bytes([1, 0])},
        {"parents": bytes([8, 1])},
        {"base": 60, "kept": b"\xff" * 8},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_what_is_no_path_or_parent_is_refused_and_changes_nothing(
    server: ServerSession, changed: dict[str, Any]
) -> None:
    grown(server)
    right = {"sequence": 3, "base": 6, "count": 2, "flags": 0, "digest": digest(KEPT), "kept": bytes([0b101])}
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            server.accept(frames.Step(**{**right, **changed}), memoryview(rows(2, 2)))
        assert (caught.value.code, caught.value.fatal) == (RemoteCode.BAD_STEP, False)
    assert server.position == 9
    server.accept(frames.Step(**right), memoryview(rows(2, 2)))


def test_bits_of_no_row_may_be_sent_as_long_as_they_are_0(server: ServerSession) -> None:
    """The two may differ on how many rows lie beside the path, but not on it."""
    grown(server)
    server.accept(frames.Step(3, 6, 2, 0, digest(KEPT), bytes([0b101, 0, 0])), memoryview(rows(2, 2)))


def test_a_path_is_kept_once_in_an_epoch(server: ServerSession) -> None:
    """After it the slots are others, so the same step again names no path, or one with another digest."""
    grown(server)
    step = frames.Step(3, 6, 2, 0, digest(KEPT), bytes([0b101]), bytes([1, 2]))
    server.accept(step, memoryview(rows(2, 2)))
    server.commit(step, memoryview(rows(2, 2)))
    with pytest.raises(RefusedError) as caught:
        server.accept(step, memoryview(rows(2, 2)))
    assert caught.value.code is RemoteCode.BAD_STEP
    assert server.position == 8
    alike = frames.Step(3, 5, 1, 0, digest(rows(4) + row(1, 1)), bytes([0b1000]))
    with pytest.raises(RefusedError) as caught:
        server.accept(alike, memoryview(rows(1, 2)))
    assert server.position == 8


def test_guesses_are_resumed_from_before_them(server: ServerSession) -> None:
    """A client that lost an answer does not know which of its guesses still stand there, so guesses go again."""
    grown(server)
    assert decoded(server.resumed(frames.Resume(server.id, 2, 9))) == frames.Resumed(2, 5, digest(rows(4) + row(0, 1)))
    assert decoded(server.resumed(frames.Resume(server.id, 3, 3))) == frames.Resumed(3, 3, digest(rows(3)))


def test_the_digest_among_guesses_is_that_of_all_of_them(server: ServerSession, client: ClientSession) -> None:
    """A step that goes on from guesses names rows beside its own path too, and their shape."""
    grown(server)
    tree_of(client)
    step = frames.decode(client.step(9, rows(1, 2), parents=bytes([2])))
    server.accept(step.header, step.payload)
    other = ServerSession("me", server.codec, HIDDEN, 100, 10)
    run(other, 0, rows(4))
    beside = frames.Step(2, 4, 5, 0, digest(rows(4)), parents=bytes([1, 2, 2, 2, 2]))
    other.accept(beside, memoryview(rows(5, 1)))
    other.commit(beside, memoryview(rows(5, 1)))
    with pytest.raises(RefusedError) as caught:
        other.accept(step.header, step.payload)
    assert caught.value.code is RemoteCode.PREFIX_MISMATCH
