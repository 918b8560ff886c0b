"""The server's half of the session protocol, without sockets and without a model.

`ServerSession` is what survives a broken connection: identity, epoch, sequence and prefix digests. `accept` checks a step
completely before anything changes; `commit` records it after the model has run.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from cutlayer.errors import ProtocolError, RefusedError, RemoteCode
from cutlayer.tree import check_backs
from cutlayer.wire import frames
from cutlayer.wire.prefix import PrefixDigests

if TYPE_CHECKING:
    from cutlayer.wire.codecs import Codec


class ServerSession:
    """One session as the server sees it.

    Args:
        owner: identity that opened it; nobody else may resume it.
        codec: how its rows are encoded, both ways.
        hidden_size: D.
        max_positions: positions it may hold.
        max_step_positions: positions one step may carry.
    """

    def __init__(self, owner: str, codec: Codec, hidden_size: int, max_positions: int, max_step_positions: int) -> None:
        self.id = secrets.token_bytes(frames.SESSION_BYTES)
        self.owner = owner
        self.epoch = 1
        self.codec = codec
        self.hidden_size = hidden_size
        self.max_positions = max_positions
        self.max_step_positions = max_step_positions
        self._sequence = 0
        self._digests = PrefixDigests()

    @property
    def row_bytes(self) -> int:
        """Encoded bytes per position."""
        return self.codec.row_bytes(self.hidden_size)

    @property
    def position(self) -> int:
        """Positions committed."""
        return len(self._digests)

    def opened(self) -> bytes:
        """The answer to OPEN."""
        return frames.encode(frames.Opened(self.id, self.epoch, self.max_positions, self.max_step_positions))

    def resumed(self, asked: frames.Resume) -> bytes:
        """Fence all earlier connections and answer RESUME.

        Raises:
            RefusedError: the epoch is not newer than the session's, so this is not the client's latest attempt.
        """
        if asked.epoch <= self.epoch:
            raise RefusedError(
                RemoteCode.STALE_EPOCH, f"session is at epoch {self.epoch}, resume asks for {asked.epoch}", fatal=True
            )
        self.epoch = asked.epoch
        self._sequence = 0
        common = min(asked.position, self._digests.tree.trunk)
        return frames.encode(frames.Resumed(self.epoch, common, self._digests.at(common)))

    def accept(self, step: frames.Step, payload: memoryview) -> None:
        """Check a step against the session, changing nothing.

        Raises:
            RefusedError: wrong sequence, gap, limit, digest or payload length.
        """
        # The last sequence number again is the same step again; running it twice leaves the same state.
        if step.sequence not in {self._sequence, (self._sequence + 1) % frames.SEQUENCES}:
            raise RefusedError(
                RemoteCode.BAD_STEP, f"step {step.sequence} out of order: {self._sequence} was the last one"
            )
        if step.base > self.position:
            raise RefusedError(
                RemoteCode.BAD_STEP, f"step from position {step.base} leaves a gap: {self.position} are held"
            )
        anchor, path = step.anchor, step.path
        try:
            digest = self._digests.after(anchor, path)
            check_backs(step.count, step.parents, step.base, self._digests.tree.trunk_after(anchor, path))
        except ProtocolError as error:
            raise RefusedError(RemoteCode.BAD_STEP, str(error)) from None
        if step.count > self.max_step_positions or step.base + step.count > self.max_positions:
            raise RefusedError(
                RemoteCode.LIMIT,
                f"{step.count} positions from {step.base} exceed {self.max_step_positions} per step "
                f"or {self.max_positions} per session",
            )
        if len(payload) != step.count * self.row_bytes:
            raise RefusedError(
                RemoteCode.BAD_STEP,
                f"{step.count} positions take {step.count * self.row_bytes} bytes, the payload has {len(payload)}",
            )
        if step.digest != digest:
            raise RefusedError(
                RemoteCode.PREFIX_MISMATCH, f"the prefix of {step.base} positions differs from the one held"
            )

    def commit(self, step: frames.Step, payload: memoryview) -> None:
        """Record a step that `accept` let pass and the model has run."""
        self._digests.keep(step.anchor, step.path)
        self._digests.extend(payload, self.row_bytes, step.parents)
        self._sequence = step.sequence

    def forget_from(self, position: int) -> None:
        """Drop what was committed from `position` on (the model could not finish a step there)."""
        self._digests.rollback(min(position, self.position))


def refusal(error: RefusedError) -> bytes:
    """The ERROR frame for a refusal."""
    return frames.encode(frames.Failure(error.code, error.message[:1024], error.fatal))
