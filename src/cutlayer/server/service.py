"""One connection after another through the protocol: open, step, resume, close.

A refusal answers the frame that caused it and leaves the session, and everybody else's, as it was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from cutlayer.errors import (
    CacheFullError,
    ConnectionLostError,
    FrameError,
    NonFiniteError,
    RefusedError,
    RemoteCode,
    SessionLostError,
    UnknownNameError,
)
from cutlayer.server.rate import Rates
from cutlayer.tree import Placement
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.server_session import refusal

if TYPE_CHECKING:
    import torch

    from cutlayer.server.engine import Computed, Runner
    from cutlayer.server.sessions import HeldSession, SessionTable
    from cutlayer.wire.frames import Header, InfoReply
    from cutlayer.wire.transport import Acceptor

log: Final = structlog.get_logger("cutlayer.server")

_LONGEST_US: Final = 0xFFFF_FFFF


class Service:
    """What all connections of a server share.

    Args:
        engine: runs the body.
        table: the sessions.
        info: what INFO answers; its time is set on each answer.
    """

    def __init__(self, engine: Runner, table: SessionTable, info: InfoReply) -> None:
        self.engine = engine
        self.table = table
        self.info = info
        self.rates = Rates(table.limits.positions_per_s)
        self.draining = False
        """Set to open no more sessions; those there are go on."""

    async def serve(self, acceptor: Acceptor) -> None:
        """Answer one connection until it ends."""
        connection = _Connection(self, acceptor)
        try:
            while not connection.finished:
                await connection.answer(await acceptor.recv())
        except ConnectionLostError:
            pass
        finally:
            connection.detach()
            await acceptor.close()


class _Connection:
    """State of one connection: at most one session, and the epoch under which it was attached."""

    def __init__(self, service: Service, acceptor: Acceptor) -> None:
        self.finished = False
        self._service = service
        self._acceptor = acceptor
        self._held: HeldSession | None = None
        self._epoch = 0

    async def answer(self, data: bytes) -> None:
        """Take one message and send one answer."""
        try:
            frame = frames.decode(data)
            reply = await self._reply(frame.header, frame.payload)
        except FrameError as error:
            reply = self._refuse(RefusedError(RemoteCode.BAD_FRAME, str(error), fatal=True))
        except RefusedError as error:
            reply = self._refuse(error)
        except Exception as error:
            # A bug or an exhausted device must not take other sessions down; content stays out of the log.
            log.error("internal_error", peer=self._acceptor.identity, error=type(error).__name__)
            reply = self._refuse(RefusedError(RemoteCode.INTERNAL, f"the server failed: {type(error).__name__}"))
        await self._acceptor.send(reply)

    async def _reply(self, header: Header, payload: memoryview) -> bytes:
        match header:
            case frames.Step():
                return await self._step(header, payload)
            case frames.Open():
                return self._open(header)
            case frames.Resume():
                return await self._resume(header)
            case frames.Close():
                return self._close()
            case frames.Info():
                return frames.encode(msgspec.structs.replace(self._service.info, time=time.time()))
            case _:
                raise RefusedError(
                    RemoteCode.BAD_FRAME, f"a {type(header).__name__} frame comes from servers only", fatal=True
                )

    def detach(self) -> None:
        """The connection has ended; its session waits for a resume, if nobody resumed it yet."""
        if self._held is not None and self._held.wire.epoch == self._epoch:
            self._held.attached = False

    def _open(self, asked: frames.Open) -> bytes:
        self._refuse_second()
        if self._service.draining:
            raise RefusedError(RemoteCode.SHUTTING_DOWN, "this server is about to stop and opens no more sessions")
        info = self._service.info
        if asked.protocol != frames.PROTOCOL:
            raise RefusedError(RemoteCode.BAD_FRAME, f"protocol {asked.protocol} asked for, {frames.PROTOCOL} spoken")
        if (asked.fingerprint, asked.cut) != (info.fingerprint, info.cut):
            raise RefusedError(
                RemoteCode.MODEL_MISMATCH,
                f"this server runs layers {info.cut} of {info.cut.layers} of {info.model} ({info.fingerprint[:8]}), the client "
                f"holds the rest of a cut {asked.cut} of {asked.cut.layers} ({asked.fingerprint[:8]})",
            )
        try:
            codec = CODECS.get(asked.codec)
        except UnknownNameError as error:
            raise RefusedError(RemoteCode.BAD_FRAME, str(error)) from None
        held = self._service.table.open(self._acceptor.identity, codec, asked.max_positions)
        self._attach(held)
        log.info("session_opened", peer=self._acceptor.identity, codec=codec.name, sessions=len(self._service.table))
        return held.wire.opened()

    async def _resume(self, asked: frames.Resume) -> bytes:
        self._refuse_second()
        table, identity = self._service.table, self._acceptor.identity
        async with table.find(asked.session, identity).lock:
            # Once more: whoever held the lock may have closed the session since.
            held = table.find(asked.session, identity)
            reply = held.wire.resumed(asked)
            self._attach(held)
        log.info("session_resumed", peer=self._acceptor.identity, epoch=held.wire.epoch, position=held.wire.position)
        return reply

    def _close(self) -> bytes:
        held = self._session()
        self._service.table.close(held)
        self._held = None
        log.info("session_closed", peer=self._acceptor.identity, positions=held.wire.position)
        return frames.encode(frames.Closed())

    async def _step(self, step: frames.Step, payload: memoryview) -> bytes:
        held = self._session()
        async with held.lock:
            self._fence(held)
            held.wire.accept(step, payload)
            try:
                hidden = held.wire.codec.decode(payload, held.wire.hidden_size)  # [T, D]
            except NonFiniteError as error:
                raise RefusedError(RemoteCode.NON_FINITE, str(error)) from None
            wanted = not step.flags & frames.NO_REPLY
            try:
                await self._service.rates.pass_through(held.wire.owner, step.count)
                place = Placement(step.base, step.path, step.parents)
                output, microseconds = await self._run(hidden, place, held)
                returned = held.wire.codec.encode(output) if wanted else b""
            except BaseException as error:
                # The cache is left alone: a cancelled step may still be running in the engine's thread, and what the cache
                # holds beyond the session's position is overwritten by the next step.
                held.wire.forget_from(step.anchor)
                if isinstance(error, NonFiniteError):
                    raise RefusedError(RemoteCode.NON_FINITE, f"the model's output: {error}") from None
                if isinstance(error, SessionLostError):
                    self._service.table.close(held)
                    raise RefusedError(
                        RemoteCode.UNKNOWN_SESSION, "the session was lost; open a new one and replay"
                    ) from None
                if isinstance(error, CacheFullError):
                    raise RefusedError(RemoteCode.LIMIT, str(error)) from None
                raise
            held.wire.commit(step, payload)
            held.used = time.monotonic()
        return frames.encode(
            frames.Result(step.sequence, step.base, step.count, min(microseconds, _LONGEST_US)), returned
        )

    async def _run(self, hidden: torch.Tensor, place: Placement, held: HeldSession) -> Computed:
        service = self._service
        while True:
            try:
                return await service.engine.run(hidden, place, held.cache)
            except CacheFullError as error:
                if error.own or not service.table.evict():
                    raise

    def _refuse_second(self) -> None:
        if self._held is not None and self._service.table.holds(self._held):
            raise RefusedError(RemoteCode.BAD_STEP, "this connection has a session; close it first")

    def _attach(self, held: HeldSession) -> None:
        self._held, self._epoch = held, held.wire.epoch
        held.attached = True
        held.used = time.monotonic()

    def _session(self) -> HeldSession:
        if self._held is None:
            raise RefusedError(RemoteCode.BAD_STEP, "no session on this connection; open or resume one first")
        self._fence(self._held)
        return self._held

    def _fence(self, held: HeldSession) -> None:
        if not self._service.table.holds(held):
            self._held = None
            raise RefusedError(RemoteCode.UNKNOWN_SESSION, "the session expired; open a new one and replay")
        if held.wire.epoch != self._epoch:
            raise RefusedError(RemoteCode.STALE_EPOCH, "the session was resumed on another connection", fatal=True)

    def _refuse(self, error: RefusedError) -> bytes:
        self.finished = error.fatal
        log.warning("refused", peer=self._acceptor.identity, code=str(error.code), fatal=error.fatal)
        return refusal(error)
