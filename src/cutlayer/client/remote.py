"""The middle layers as seen from the client: a body that runs elsewhere and survives its server.

Every position's encoded hidden states are kept here until they are rolled back, so a server that lost its cache is brought
back by replaying the very same bytes. Nothing of an answer is given out twice: a step either returned its hidden states
once, or is sent again.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from cutlayer.errors import CancelledError, ConnectionLostError, ProtocolError, RemoteCode, RemoteError, WireError
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession, expect_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from cutlayer.types import Cut
    from cutlayer.wire.codecs import Codec
    from cutlayer.wire.frames import InfoReply
    from cutlayer.wire.transport import Connect, PeerSecurity, Transport

REPLAY_BYTES: Final = 4 << 20
"""Rows per replayed frame; keeps any one frame from blocking the link for long."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_FAREWELL_S: Final = 5.0
"""For a busy server to forget the session. If it learns first that the connection ended, it keeps the session for a resume."""
_HEED_S: Final = 0.1
"""How soon a pause between two attempts notices that nobody waits any more."""

_GONE: Final = frozenset({RemoteCode.UNKNOWN_SESSION, RemoteCode.STALE_EPOCH})
"""Refusals that a new session and a full replay put right."""
_CURABLE: Final = _GONE | {RemoteCode.PREFIX_MISMATCH}
"""The prefix may differ after a server's accident; resuming finds out and replays."""


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for a server."""

    step_s: float = 300.0
    """For one answer. Keepalive pings notice a vanished server much sooner."""
    recover_s: float = 60.0
    """For a lost server to come back."""


class Traffic(msgspec.Struct):
    """Bytes of messages, transport framing and TLS excluded."""

    sent: int = 0
    received: int = 0
    resumes: int = 0
    """How often the connection was lost and recovered."""


class Returned(NamedTuple):
    """A step's result."""

    hidden: torch.Tensor
    """[T, D]"""
    compute_us: int
    """Server's time in the model."""


class RemoteBody:
    """Layers [k, L−m) on a server.

    Args:
        connect: opens a transport; called again after every loss.
        patience: timeouts.

    Raises:
        ConnectionLostError: the first connection failed.
    """

    def __init__(self, connect: Connect, patience: Patience | None = None) -> None:
        self._connect = connect
        self._patience = patience or Patience()
        self.traffic = Traffic()
        self._transport: Transport = connect()
        self._session: ClientSession | None = None
        self._opening: tuple[str, Cut, str, int] | None = None
        self._codec: Codec | None = None
        self._hidden_size = 0
        self._kept: tuple[int, Sequence[int]] = 0, ()
        """Where guesses were resolved since the last step, and how."""
        self._attempts = 0
        """To recover, since the last answer. Each but the first waits a little longer, so that a server which fails again
        and again is not overrun with replays."""
        self._aborted = threading.Event()
        self._cancelled: Callable[[], bool] = lambda: False

    def info(self) -> InfoReply:
        """Ask the server what it runs."""
        self._send(frames.encode(frames.Info()))
        return expect_info(self._recv())

    def security(self) -> PeerSecurity:
        """How the present connection is protected."""
        return self._transport.security()

    def open(self, fingerprint: str, cut: Cut, codec: Codec, hidden_size: int, max_positions: int = 0) -> None:
        """Start the session.

        Raises:
            RemoteError: another model or cut, or no room.
        """
        self._codec, self._hidden_size = codec, hidden_size
        self._opening = (fingerprint, cut, codec.name, max_positions)
        session = ClientSession(codec.row_bytes(hidden_size))
        self._send(session.open(*self._opening))
        session.receive(self._recv())
        self._session = session

    @property
    def max_positions(self) -> int:
        """Positions the session may hold."""
        return self._opened().max_positions

    @property
    def max_step_positions(self) -> int:
        """Positions one step may carry."""
        return self._opened().max_step_positions

    def send(self, base: int, hidden: torch.Tensor, backs: Sequence[int] = ()) -> None:
        """Send hidden states [T, D] as the positions from `base` on, rolling back whatever lies there.

        Args:
            base: first of the positions.
            hidden: what to send.
            backs: what each row follows; see `Tree.extend`.

        Raises:
            NonFiniteError: they cannot be encoded.
            ProtocolError: they do not fit the session, or there is no such path or parent; nothing is sent.
            ConnectionLostError: the server did not come back in time.
        """
        session, rows = self._opened(), self._encoding().encode(hidden)
        anchor, path = self._kept
        frame = session.step(base, rows, path[: max(base - anchor, 0)], backs)
        self._kept = 0, ()
        try:
            self._send(frame)
        except ConnectionLostError:
            self._recover()

    def keep(self, anchor: int, path: Sequence[int]) -> None:
        """Of the positions from `anchor` on keep those of a path, see `Tree.keep`; the server hears of it with the next step."""
        self._kept = anchor, path

    def receive(self) -> Returned:
        """Wait for the oldest outstanding step.

        Raises:
            ConnectionLostError: the server did not come back in time.
            RemoteError: the server refused the step.
            ProtocolError: it answered something else than the step.
            NonFiniteError: it returned NaN or infinity.
        """
        session = self._opened()
        if not session.outstanding:
            raise ProtocolError("no step is waiting for its answer; send one first")
        deadline = time.monotonic() + self._patience.step_s + self._patience.recover_s
        while True:
            try:
                output = session.receive(self._recv())
            except ConnectionLostError:
                if time.monotonic() > deadline:
                    raise
                self._recover()
                continue
            except RemoteError as error:
                if error.code not in _CURABLE or time.monotonic() > deadline:
                    raise
                self._recover()
                continue
            self._attempts = 0
            if output is None:  # of a step that was rolled back while it was under way
                continue
            return Returned(self._encoding().decode(output.payload, self._hidden_size), output.compute_us)

    @contextmanager
    def heeding(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Within, attempts to reach a lost server again end with CancelledError once `cancelled` says so."""
        self._cancelled = cancelled
        try:
            yield
        finally:
            self._cancelled = lambda: False

    def abandon(self) -> None:
        """Forget the steps that nobody waits for any more, after an error or an interruption.

        Their answers may still arrive, so the connection is given up with them; the next step resumes on a new one.
        """
        if self._session is not None and self._session.outstanding:
            self._session.abandon()
            self._transport.close()

    def close(self) -> None:
        """Free the server's memory and disconnect. A server that is gone already is no error."""
        try:
            if self._session is not None and self._session.id is not None:
                self._take_leave(self._session)
        except WireError:
            pass
        finally:
            self._session = None
            self._transport.close()

    def _take_leave(self, session: ClientSession) -> None:
        try:
            self._send(session.close())
        except ConnectionLostError:
            if self._aborted.is_set():
                return
            # An interrupted step took the connection with it. Come back once, or the session would stay until it expires.
            self._transport = self._connect()
            self._send(session.resume())
            session.receive(self._recv())
            self._send(session.close())
        deadline = time.monotonic() + _FAREWELL_S
        while session.id is not None:
            session.receive(self._transport.recv(max(0.0, deadline - time.monotonic())))

    def abort(self) -> None:
        """Disconnect for good; another thread waiting for an answer gets ConnectionLostError. The server's session expires."""
        self._aborted.set()
        self._transport.close()

    def _opened(self) -> ClientSession:
        if self._session is None:
            raise ProtocolError("no session; open one first")
        return self._session

    def _encoding(self) -> Codec:
        if self._codec is None:
            raise ProtocolError("no session; open one first")
        return self._codec

    def _send(self, data: bytes) -> None:
        self._transport.send(data)
        self.traffic.sent += len(data)

    def _recv(self) -> bytes:
        data = self._transport.recv(self._patience.step_s)
        self.traffic.received += len(data)
        return data

    def _recover(self) -> None:
        """Reconnect, resume or reopen, replay. Tries until the patience ends."""
        session = self._opened()
        deadline = time.monotonic() + self._patience.recover_s
        while True:
            self._rest(self._pause())
            self._attempts += 1
            try:
                self._transport.close()
                self._transport = self._connect()
                if self._aborted.is_set():  # `abort` closed the transport it found, perhaps not yet this one
                    continue
                self._continue(session)
            except ConnectionLostError as error:
                failure: Exception = error
            except RemoteError as error:
                # On a new connection again, for a refusal may end the one it came on.
                if error.code not in _CURABLE or session.id is None:
                    raise
                if error.code in _GONE:
                    session.forget_server()
                failure = error
            else:
                self.traffic.resumes += 1
                return
            if time.monotonic() > deadline:
                raise ConnectionLostError(f"gave up after {self._patience.recover_s:.0f} s: {failure}") from failure

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt, unless there is to be none."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if self._aborted.wait(max(0.0, min(left, _HEED_S))):
                self._transport.close()
                raise ConnectionLostError("aborted on this side")
            if self._cancelled():
                self._transport.close()
                raise CancelledError("stopped while the server was away")
            if left <= _HEED_S:
                return

    def _pause(self) -> float:
        return min(_FIRST_PAUSE_S * 2.0 ** (self._attempts - 1), _LONGEST_PAUSE_S) if self._attempts else 0.0

    def _continue(self, session: ClientSession) -> None:
        if session.id is not None:
            self._send(session.resume())
        elif self._opening is not None:
            self._send(session.open(*self._opening))
        session.receive(self._recv())
        for frame, silent in session.replay(REPLAY_BYTES):
            self._send(frame)
            if silent:
                session.receive(self._recv())
        # Steps that were waiting for their answer were sent last; `receive` reads them.
