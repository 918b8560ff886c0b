"""The tap records what crosses, and says so when it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cutlayer.audit.tap import Tally, Tap
from cutlayer.errors import ConnectionLostError, InputError
from cutlayer.wire.transport import PeerSecurity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECURITY = PeerSecurity("TLSv1.3", "cipher", "server", "ab" * 32)


class Echo:
    """Answers every message with its reverse."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.closed = 0
        self.broken = False

    def send(self, data: bytes) -> None:
        if self.broken:
            raise ConnectionLostError("broken")
        self.waiting.append(data[::-1])

    def recv(self, timeout_s: float | None = None) -> bytes:
        if not self.waiting:
            raise ConnectionLostError(f"nothing within {timeout_s} s")
        return self.waiting.pop(0)

    def close(self) -> None:
        self.closed += 1

    def security(self) -> PeerSecurity:
        return SECURITY


def test_both_directions_in_order() -> None:
    tap = Tap(Echo)
    line = tap()
    line.send(b"one")
    line.send(b"two")
    assert line.recv() == b"eno"
    assert line.recv() == b"owt"
    assert [(item.direction, item.data) for item in tap.frames] == [
        ("sent", b"one"),
        ("sent", b"two"),
        ("received", b"eno"),
        ("received", b"owt"),
    ]
    assert [item.at for item in tap.frames] == sorted(item.at for item in tap.frames)
    assert tap.complete
    assert (tap.sent, tap.received, tap.missed) == (Tally(2, 6), Tally(2, 6), Tally())


def test_the_rest_of_the_transport_shows_through() -> None:
    inner = Echo()
    line = Tap(lambda: inner)()
    assert line.security() == SECURITY
    line.close()
    assert inner.closed == 1
    with pytest.raises(ConnectionLostError, match=r"within 0\.5 s"):
        line.recv(0.5)


def test_connections_are_told_apart() -> None:
    tap = Tap(Echo)
    first, second = tap(), tap()
    second.send(b"b")
    first.send(b"a")
    assert [(item.connection, item.data) for item in tap.frames] == [(1, b"b"), (0, b"a")]
    assert tap.connections == 2


def test_a_message_whose_sending_failed_counts_as_sent() -> None:
    inner = Echo()
    inner.broken = True
    tap = Tap(lambda: inner)
    with pytest.raises(ConnectionLostError):
        tap().send(b"half of this may have left")
    assert [item.direction for item in tap.frames] == ["sent"]


def test_a_message_that_never_came_is_not_recorded() -> None:
    tap = Tap(Echo)
    with pytest.raises(ConnectionLostError):
        tap().recv(0.0)
    assert tap.frames == ()


def test_a_connection_that_fails_to_open_is_no_connection() -> None:
    def refuse() -> Echo:
        raise ConnectionLostError("nobody there")

    tap = Tap(refuse)
    with pytest.raises(ConnectionLostError):
        tap()
    assert tap.connections == 0


def test_beyond_the_limit_it_says_so_and_goes_on_counting() -> None:
    tap = Tap(Echo, limit_bytes=10)
    line = tap()
    for size in (4, 6):
        line.send(bytes(size))
    assert tap.complete
    line.send(bytes(3))
    assert not tap.complete
    line.send(b"")  # would fit, but what is held must be a prefix of what crossed
    assert [len(item.data) for item in tap.frames] == [4, 6]
    assert tap.missed == Tally(2, 3)
    assert tap.sent == Tally(4, 13)
    assert not tap.complete


def test_the_recording_does_not_change_with_the_senders_buffer() -> None:
    tap = Tap(Echo)
    buffer = bytearray(b"as sent")
    tap().send(buffer)  # type: ignore[arg-type]
    buffer[:2] = b"is"
    assert tap.frames[0].data == b"as sent"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_tap_without_memory_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=str(limit)):
        Tap(Echo, limit)


def test_reprs_show_no_content() -> None:
    tap = Tap(Echo)
    tap().send(b"hidden states")
    assert "hidden" not in repr(tap.frames)


def test_what_it_counts_is_what_the_client_counts(tiny_with_text: Callable[[str], Path]) -> None:
    from cutlayer.client.connect import Client, Options
    from cutlayer.server.build import build_service
    from cutlayer.server.local import LocalServer

    directory = tiny_with_text("llama")
    with LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as server:
        tap = Tap(server.connect)
        with Client(tap, Options(model=str(directory))) as client:
            client.generate("hello", max_tokens=3, ignore_eos=True).result()
            traffic = client._remote.traffic
            assert (tap.sent.bytes, tap.received.bytes) == (traffic.sent, traffic.received)
            assert sum(len(item.data) for item in tap.frames) == traffic.sent + traffic.received
