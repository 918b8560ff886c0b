"""The session protocol rule by rule, each half played by hand."""

from __future__ import annotations

import pytest
from tests.wire.conftest import HIDDEN, ID, ROW, answer, decoded, digest, rows, run

from cutlayer.errors import ProtocolError, RefusedError, RemoteCode, RemoteError
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession, expect_info
from cutlayer.wire.server_session import ServerSession, refusal

# The client's half


def test_a_step_names_its_prefix(client: ClientSession) -> None:
    first = frames.decode(client.step(0, rows(3)))
    assert first.header == frames.Step(1, 0, 3, 0, bytes(8))
    assert bytes(first.payload) == rows(3)
    assert decoded(client.step(3, rows(1, 1))) == frames.Step(2, 3, 1, 0, digest(rows(3)))


def test_a_step_may_roll_back_whole_steps_under_way(client: ClientSession) -> None:
    """Their answers still come and are nobody's; part of a step cannot be given up while its answer is due."""
    first, second = client.step(0, rows(3)), client.step(3, rows(2, 1))
    with pytest.raises(ProtocolError, match="cannot roll back to 2, within the unanswered step from 0"):
        client.step(2, rows(1, 2))
    assert (client.sent, client.outstanding) == (5, 2)
    third = client.step(3, rows(1, 2))
    assert decoded(third) == frames.Step(3, 3, 1, 0, digest(rows(3)))
    assert (client.sent, client.outstanding) == (4, 2)
    assert [answer(client, frame) is None for frame in (first, second, third)] == [False, True, False]
    assert decoded(client.step(2, rows(1, 3))) == frames.Step(4, 2, 1, 0, digest(rows(2)))
    assert client.sent == 3


def test_answers_to_steps_given_up_are_checked_like_any(client: ClientSession) -> None:
    client.step(0, rows(3))
    client.step(0, rows(1, 1))
    with pytest.raises(ProtocolError, match="where step 1"):
        client.receive(frames.encode(frames.Result(2, 0, 1, 0), bytes(ROW)))
    with pytest.raises(ProtocolError, match="returned 4 bytes for a step that takes 12"):
        client.receive(frames.encode(frames.Result(1, 0, 3, 0), bytes(ROW)))


@pytest.mark.parametrize(
    ("base", "data", "words"),
    [
        (1, rows(1), "0 are held"),
        (0, b"", "whole rows"),
        (0, b"12345", "whole rows"),
        (0, rows(11), "1 to 10 whole rows"),
    ],
)
def test_impossible_steps_are_not_sent(client: ClientSession, base: int, data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        client.step(base, data)
    assert (client.sent, client.outstanding) == (0, 0)


def test_a_session_holds_no_more_than_was_agreed(client: ClientSession) -> None:
    for base in range(0, 100, 10):
        answer(client, client.step(base, rows(10, base)))
    with pytest.raises(ProtocolError, match="exceeds the session's 100"):
        client.step(100, rows(1))


def test_results_come_in_order_and_once(client: ClientSession) -> None:
    frame = client.step(0, rows(2))
    client.step(2, rows(1, 1))
    second = frames.encode(frames.Result(2, 2, 1, 0), bytes(ROW))
    with pytest.raises(ProtocolError, match="where step 1"):
        client.receive(second)
    answer(client, frame)
    client.receive(second)
    with pytest.raises(ProtocolError, match="never sent"):
        client.receive(second)


@pytest.mark.parametrize("size", [0, ROW, 2 * ROW - 1, 3 * ROW])
def test_a_result_brings_as_many_rows_as_were_sent(client: ClientSession, size: int) -> None:
    client.step(0, rows(2))
    with pytest.raises(ProtocolError, match=f"returned {size} bytes for a step that takes {2 * ROW}"):
        client.receive(frames.encode(frames.Result(1, 0, 2, 0), bytes(size)))
    assert client.outstanding == 1


@pytest.mark.parametrize(
    "header",
    [
        frames.Opened(bytes(16), 9, 5, 5),
        frames.Resumed(2, 0, bytes(8)),
        frames.Closed(),
        frames.Info(),
        frames.Step(1, 0, 1, 0, bytes(8)),
    ],
    ids=lambda header: type(header).__name__,
)
def test_frames_nobody_asked_for_change_nothing(client: ClientSession, header: frames.Header) -> None:
    frame = client.step(0, rows(1))
    with pytest.raises(ProtocolError, match=f"sent {type(header).__name__} where Result was due"):
        client.receive(frames.encode(header))
    assert (client.id, client.epoch, client.max_positions) == (ID, 1, 100)
    answer(client, frame)


def test_results_under_way_may_come_before_a_session_is_closed(client: ClientSession) -> None:
    client.step(0, rows(2))
    client.close()
    assert client.receive(frames.encode(frames.Result(1, 0, 2, 0), bytes(2 * ROW))) is None
    with pytest.raises(ProtocolError, match="sent Opened where Closed was due"):
        client.receive(frames.encode(frames.Opened(bytes(16), 9, 5, 5)))
    assert client.id == ID
    client.receive(frames.encode(frames.Closed()))
    assert client.id is None


@pytest.mark.parametrize("asked", ["open", "resume"])
def test_no_result_passes_for_an_answer_to_open_or_resume(client: ClientSession, asked: str) -> None:
    client.step(0, rows(1))
    due = {"open": "Opened", "resume": "Resumed"}[asked]
    client.open("f", Cut(0, 1, 1), "fp16") if asked == "open" else client.resume()
    with pytest.raises(ProtocolError, match=f"where {due} was due"):
        client.receive(frames.encode(frames.Result(1, 0, 1, 0), bytes(ROW)))
    assert client.outstanding == 1


def test_every_resume_has_an_epoch_of_its_own(client: ClientSession) -> None:
    assert [decoded(client.resume()).epoch for _ in range(3)] == [2, 3, 4]
    with pytest.raises(ProtocolError, match="epoch 3 where 4"):
        client.receive(frames.encode(frames.Resumed(3, 0, bytes(8))))


def test_resume_asks_about_what_was_answered(client: ClientSession) -> None:
    answer(client, client.step(0, rows(5)))
    client.step(5, rows(2, 1))
    client.step(7, rows(2, 2))
    assert decoded(client.resume()).position == 5


def test_replay_sends_what_the_server_lacks_silently_and_the_unanswered_again(client: ClientSession) -> None:
    answer(client, client.step(0, rows(5)))
    client.step(5, rows(2, 1))
    client.resume()
    client.receive(frames.encode(frames.Resumed(2, 1, digest(rows(1)))))
    replayed = list(client.replay(max_bytes=3 * ROW))
    assert [(decoded(again.frame).base, decoded(again.frame).count, again.silent) for again in replayed] == [
        (1, 3, True),
        (4, 1, True),
        (5, 2, False),
    ]
    assert [decoded(again.frame).sequence for again in replayed] == [1, 2, 3]
    assert bytes(frames.decode(replayed[-1].frame).payload) == rows(2, 1)
    with pytest.raises(ProtocolError, match="returned 12 bytes"):
        client.receive(frames.encode(frames.Result(1, 1, 3, 0), bytes(3 * ROW)))
    for again in replayed:
        answer(client, again.frame)
    assert client.outstanding == 0


@pytest.mark.parametrize(
    "claim",
    [frames.Resumed(2, 5, bytes(8)), frames.Resumed(2, 6, digest(rows(5))), frames.Resumed(2, 3, digest(rows(3, 1)))],
    ids=["digest", "position", "rows"],
)
def test_a_server_that_holds_something_else_gets_everything_again(client: ClientSession, claim: frames.Resumed) -> None:
    answer(client, client.step(0, rows(5)))
    client.resume()
    client.receive(frames.encode(claim))
    assert [(decoded(again.frame).base, decoded(again.frame).count) for again in client.replay(1 << 20)] == [(0, 5)]


def test_a_replay_cut_short_starts_over(client: ClientSession) -> None:
    answer(client, client.step(0, rows(5)))
    client.step(5, rows(1, 1))
    for epoch in (2, 3):
        client.resume()
        client.receive(frames.encode(frames.Resumed(epoch, 0, bytes(8))))
        replay = client.replay(2 * ROW)
        answer(client, next(replay).frame)
    assert [decoded(again.frame).base for again in replay] == [2, 4, 5]


def test_abandoned_steps_are_neither_replayed_nor_counted(client: ClientSession) -> None:
    answer(client, client.step(0, rows(5)))
    client.step(5, rows(2, 1))
    client.step(7, rows(2, 2))
    client.abandon()
    assert (client.sent, client.outstanding) == (5, 0)
    assert decoded(client.resume()).position == 5
    client.receive(frames.encode(frames.Resumed(2, 5, digest(rows(5)))))
    assert list(client.replay(1 << 20)) == []
    assert decoded(client.step(5, rows(1, 3))) == frames.Step(1, 5, 1, 0, digest(rows(5)))


def test_abandoning_during_a_replay_keeps_the_answered_rows(client: ClientSession) -> None:
    answer(client, client.step(0, rows(5)))
    client.step(5, rows(2, 1))
    client.forget_server()
    client.open("f", Cut(0, 1, 1), "fp16")
    client.receive(frames.encode(frames.Opened(bytes(16), 1, 100, 10)))
    next(client.replay(2 * ROW))
    client.abandon()
    assert client.sent == 5


def test_sequence_numbers_wrap(client: ClientSession, server: ServerSession) -> None:
    client._sequence = server._sequence = frames.SEQUENCES - 3
    for _ in range(5):
        frame = frames.decode(client.step(0, rows(1)))
        server.accept(frame.header, frame.payload)
        server.commit(frame.header, frame.payload)
        answer(client, frames.encode(frame.header, frame.payload))
    assert frame.header.sequence == 2


def test_an_error_frame_raises_what_it_says(client: ClientSession) -> None:
    with pytest.raises(RemoteError, match=r"\(limit\): too many") as caught:
        client.receive(refusal(RefusedError(RemoteCode.LIMIT, "too many")))
    assert caught.value.code is RemoteCode.LIMIT


def test_resuming_what_was_never_opened_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="never opened"):
        ClientSession(ROW).resume()


def test_info_is_answered_by_info() -> None:
    with pytest.raises(ProtocolError, match="expected INFO_REPLY, got Closed"):
        expect_info(frames.encode(frames.Closed()))
    with pytest.raises(RemoteError):
        expect_info(refusal(RefusedError(RemoteCode.INTERNAL, "no")))


# The server's half


def test_session_ids_are_long_and_differ(server: ServerSession) -> None:
    ids = {ServerSession("me", server.codec, HIDDEN, 1, 1).id for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(session) for session in ids} == {16}


@pytest.mark.parametrize(
    ("header", "payload", "code"),
    [
        (frames.Step(3, 5, 1, 0, digest(rows(5))), rows(1), RemoteCode.BAD_STEP),  # two ahead
        (frames.Step(0, 5, 1, 0, digest(rows(5))), rows(1), RemoteCode.BAD_STEP),  # an old one
        (frames.Step(2, 6, 1, 0, digest(rows(5))), rows(1), RemoteCode.BAD_STEP),  # a gap
        (frames.Step(2, 5, 11, 0, digest(rows(5))), rows(11), RemoteCode.LIMIT),
        (frames.Step(2, 5, 2, 0, digest(rows(5))), rows(1), RemoteCode.BAD_STEP),  # payload too short
        (frames.Step(2, 5, 1, 0, digest(rows(5))), rows(2), RemoteCode.BAD_STEP),
        (frames.Step(2, 5, 1, 0, digest(rows(5))), b"", RemoteCode.BAD_STEP),
        (frames.Step(2, 5, 1, 0, bytes(8)), rows(1), RemoteCode.PREFIX_MISMATCH),
        (frames.Step(2, 3, 1, 0, digest(rows(5))), rows(1), RemoteCode.PREFIX_MISMATCH),
    ],
)  # fmt: skip
def test_a_refused_step_changes_nothing(
    server: ServerSession, header: frames.Step, payload: bytes, code: RemoteCode
) -> None:
    run(server, 0, rows(5))
    with pytest.raises(RefusedError) as caught:
        server.accept(header, memoryview(payload))
    assert (caught.value.code, caught.value.fatal) == (code, False)
    assert server.position == 5
    run(server, 5, rows(1, 1), sequence=2, prefix=rows(5))


def test_no_step_reaches_beyond_the_session(server: ServerSession) -> None:
    for base in range(0, 100, 10):
        run(server, base, rows(10, base))
    with pytest.raises(RefusedError) as caught:
        run(server, 100, rows(1))
    assert caught.value.code is RemoteCode.LIMIT
    run(server, 91, rows(9))
    assert server.position == 100


def test_a_step_sent_twice_changes_nothing(server: ServerSession) -> None:
    run(server, 0, rows(5))
    for _ in range(2):
        run(server, 3, rows(2, 1), sequence=2, prefix=rows(3))
    assert server._digests.at(5) == digest(rows(3) + rows(2, 1))


def test_resume_tells_what_is_held_up_to_what_was_asked(server: ServerSession) -> None:
    run(server, 0, rows(5))
    assert decoded(server.resumed(frames.Resume(server.id, 2, 9))) == frames.Resumed(2, 5, digest(rows(5)))
    assert decoded(server.resumed(frames.Resume(server.id, 3, 2))) == frames.Resumed(3, 2, digest(rows(2)))
    assert server.position == 5


def test_an_attempt_whose_answer_was_lost_does_not_block_the_next(client: ClientSession, server: ServerSession) -> None:
    server.resumed(decoded(client.resume()))  # nobody hears it
    client.receive(server.resumed(decoded(client.resume())))
    assert client.epoch == server.epoch == 3


@pytest.mark.parametrize("epoch", [0, 1, 3, 4])
def test_attempts_that_come_late_or_twice_are_refused(server: ServerSession, epoch: int) -> None:
    server.resumed(frames.Resume(server.id, 4, 0))
    with pytest.raises(RefusedError) as caught:
        server.resumed(frames.Resume(server.id, epoch, 0))
    assert (caught.value.code, caught.value.fatal) == (RemoteCode.STALE_EPOCH, True)
    assert server.epoch == 4


def test_resuming_starts_the_sequence_over(server: ServerSession) -> None:
    run(server, 0, rows(1))
    run(server, 1, rows(1, 1))
    server.resumed(frames.Resume(server.id, 2, 2))
    run(server, 2, rows(1, 2), sequence=1)


def test_a_failed_step_leaves_the_prefix_it_started_from(server: ServerSession) -> None:
    run(server, 0, rows(5))
    server.forget_from(3)
    assert server.position == 3
    server.forget_from(9)
    assert server.position == 3


def test_long_words_are_cut_to_what_a_frame_carries() -> None:
    assert len(decoded(refusal(RefusedError(RemoteCode.INTERNAL, "x" * 5000))).message) == 1024
