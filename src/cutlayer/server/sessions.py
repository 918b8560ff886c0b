"""The table of sessions: limits, ownership, expiry."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from cutlayer.errors import RefusedError, RemoteCode
from cutlayer.wire.server_session import ServerSession

if TYPE_CHECKING:
    from cutlayer.models.cache import RollbackCache
    from cutlayer.models.parts import Body
    from cutlayer.wire.codecs import Codec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one server lets its clients use."""

    sessions: int = 64
    """Open sessions, attached to a connection or waiting for a resume."""
    sessions_per_owner: int = 0
    """Of those, how many one identity may have; 0 sets no limit of its own."""
    positions: int = 8192
    """Positions (tokens) per session; bounds the cache."""
    step_positions: int = 512
    """Positions per step; bounds a frame and how long one step may keep the model."""
    idle_s: float = 600.0
    """A session nobody uses for this long is dropped."""


class HeldSession:
    """A session and its cache."""

    def __init__(self, wire: ServerSession, cache: RollbackCache) -> None:
        self.wire = wire
        self.cache = cache
        self.lock = asyncio.Lock()
        """Held from a step's check to its commit, and by a resume, which thereby waits for a step in flight."""
        self.used = time.monotonic()


class SessionTable:
    """All sessions of a server.

    Args:
        body: the model part sessions run through.
        hidden_size: D.
        limits: bounds.
    """

    def __init__(self, body: Body, hidden_size: int, limits: Limits) -> None:
        self._body = body
        self._hidden_size = hidden_size
        self.limits = limits
        self._sessions: dict[bytes, HeldSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def cache_bytes(self) -> int:
        """Bytes all caches hold on the device."""
        return sum(held.cache.nbytes() for held in self._sessions.values())

    def open(self, owner: str, codec: Codec, max_positions: int) -> HeldSession:
        """Start a session.

        Raises:
            RefusedError: too many sessions, or too many positions asked for.
        """
        self.expire()
        if len(self._sessions) >= self.limits.sessions:
            raise RefusedError(RemoteCode.LIMIT, f"all {self.limits.sessions} sessions are in use; try again later")
        theirs = sum(held.wire.owner == owner for held in self._sessions.values())
        if 0 < self.limits.sessions_per_owner <= theirs:
            raise RefusedError(
                RemoteCode.LIMIT, f"you have {theirs} sessions open, as many as one client may; close one"
            )
        if max_positions > self.limits.positions:
            raise RefusedError(
                RemoteCode.LIMIT, f"{max_positions} positions asked for, a session may hold {self.limits.positions}"
            )
        wire = ServerSession(
            owner, codec, self._hidden_size, max_positions or self.limits.positions, self.limits.step_positions
        )
        held = self._sessions[wire.id] = HeldSession(wire, self._body.new_cache())
        return held

    def find(self, session: bytes, owner: str) -> HeldSession:
        """The session of that id, if `owner` opened it.

        Raises:
            RefusedError: no such session. Somebody else's looks the same as none.
        """
        self.expire()
        held = self._sessions.get(session)
        if held is None or held.wire.owner != owner:
            raise RefusedError(RemoteCode.UNKNOWN_SESSION, "no such session; open a new one and replay")
        return held

    def holds(self, held: HeldSession) -> bool:
        """Whether `held` is still open."""
        return self._sessions.get(held.wire.id) is held

    def close(self, held: HeldSession) -> None:
        """Drop a session and free its cache."""
        self._sessions.pop(held.wire.id, None)

    def expire(self) -> int:
        """Drop sessions idle for too long; return how many."""
        oldest = time.monotonic() - self.limits.idle_s
        idle = [held for held in self._sessions.values() if held.used < oldest and not held.lock.locked()]
        for held in idle:
            self.close(held)
        return len(idle)
