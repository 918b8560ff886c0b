"""The table of sessions: limits, ownership, expiry."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from cutlayer.errors import CacheFullError, RefusedError, RemoteCode
from cutlayer.wire.server_session import ServerSession

if TYPE_CHECKING:
    from cutlayer.server.engine import Runner
    from cutlayer.wire.codecs import Codec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one server lets its clients use."""

    sessions: int = 64
    """Open sessions, attached to a connection or waiting for a resume."""
    sessions_per_owner: int = 0
    """Of those, how many one identity may have; 0 sets no limit of its own."""
    positions: int = 8192
    """Positions (tokens) per session."""
    cache_positions: int = 65_536
    """Positions of all sessions together; bounds the cache."""
    cache_positions_per_owner: int = 0
    """Of those, how many one identity may hold; 0 sets no limit of its own."""
    positions_per_s: float = 0.0
    """Positions one identity may send in the long run; 0 sets no limit."""
    step_positions: int = 512
    """Positions per step; bounds a frame and how long one step may keep the model."""
    idle_s: float = 600.0
    """A session nobody uses for this long is dropped."""


class HeldSession:
    """A session and its cache.

    Args:
        wire: protocol state.
        cache: what the engine gave for it.
    """

    def __init__(self, wire: ServerSession, cache: Any) -> None:
        self.wire = wire
        self.cache = cache
        self.attached = False
        """Whether a living connection uses it."""
        self.lock = asyncio.Lock()
        """Held from a step's check to its commit, and by a resume, which thereby waits for a step in flight."""
        self.used = time.monotonic()


class SessionTable:
    """All sessions of a server.

    Args:
        engine: runs the sessions and keeps their caches.
        hidden_size: D.
        limits: bounds.
    """

    def __init__(self, engine: Runner, hidden_size: int, limits: Limits) -> None:
        self._engine = engine
        self._hidden_size = hidden_size
        self.limits = limits
        self._sessions: dict[bytes, HeldSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, owner: str, codec: Codec, max_positions: int) -> HeldSession:
        """Start a session. One that states how many positions it will take has them for certain.

        Raises:
            RefusedError: too many sessions, too many positions asked for, or no room for them.
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
        try:
            cache = self._engine.new_cache(owner, max_positions)
        except CacheFullError as error:
            raise RefusedError(RemoteCode.LIMIT, str(error)) from None
        held = self._sessions[wire.id] = HeldSession(wire, cache)
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
        if self._sessions.pop(held.wire.id, None) is not None:
            self._engine.release(held.cache)

    def clear(self) -> None:
        """Drop all sessions."""
        for held in list(self._sessions.values()):
            self.close(held)

    def busy(self, within_s: float) -> int:
        """Sessions that made a step in the last `within_s` seconds."""
        since = time.monotonic() - within_s
        return sum(held.attached and (held.used >= since or held.lock.locked()) for held in self._sessions.values())

    def evict(self) -> bool:
        """Make room: drop the session that has waited longest for its client to come back, which can replay it.

        Returns:
            Whether there was one.
        """
        waiting = [held for held in self._sessions.values() if not held.attached and not held.lock.locked()]
        if waiting:
            self.close(min(waiting, key=lambda held: held.used))
        return bool(waiting)

    def expire(self) -> int:
        """Drop sessions idle for too long; return how many."""
        oldest = time.monotonic() - self.limits.idle_s
        idle = [held for held in self._sessions.values() if held.used < oldest and not held.lock.locked()]
        for held in idle:
            self.close(held)
        return len(idle)
