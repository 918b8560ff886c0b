"""Several copies of the body, on whatever machines they run: who holds which session, and what happens when one dies.

A session stays with the replica it began on, which holds its cache. A replica that dies takes its own sessions with it and
nobody else's: their next step is answered with "unknown session", and their clients, which kept every row they sent, open a new
session and replay it. Replicas follow the sessions: another is started when those there are full, one without sessions is
stopped after a while.

Nothing here knows how a replica is reached; `cutlayer.server.ray_stages` does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from cutlayer.errors import CacheFullError, SessionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from cutlayer.server.engine import Computed
    from cutlayer.tree import Placement

log: Final = structlog.get_logger("cutlayer.server")


class Replica(Protocol):
    """One whole body, perhaps in several stages on several machines."""

    async def opened(self) -> list[str]:
        """Wait until it can run; names of the checkpoint tensors it opened.

        Raises:
            SessionLostError: it died, or could not start.
        """

    async def run(self, session: int, owner: str, hidden: torch.Tensor, place: Placement) -> Computed:
        """Run hidden states [T, D] at their place in the session, creating it at 0.

        Raises:
            CacheFullError: no room.
            SessionLostError: the replica died or does not know the session.
        """

    def release(self, session: int) -> None:
        """Forget a session."""

    def stop(self) -> None:
        """End it."""


class Scale(NamedTuple):
    """How many replicas there may be, and when."""

    most: int = 1
    sessions_each: int = 16
    """Beyond that another replica is started, if one may be."""
    idle_s: float = 300.0
    """A replica without sessions for so long is stopped, unless it is the last."""


class Place:
    """Where a session is."""

    def __init__(self, replica: _Running, session: int, owner: str) -> None:
        self.replica = replica
        self.session = session
        self.owner = owner


class _Running:
    """A replica and the sessions on it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.sessions: set[int] = set()
        self.alive = True
        self.emptied = time.monotonic()


class ReplicaEngine:
    """A `Runner` over replicas.

    Args:
        start: begins a new replica and returns at once.
        scale: how many there may be.
        stopped: called when all have been stopped.
    """

    def __init__(self, start: Callable[[], Replica], scale: Scale, stopped: Callable[[], None] = lambda: None) -> None:
        self._start = start
        self._scale = scale
        self._stopped = stopped
        self._next = 0
        self._running: list[_Running] = []
        self._begin()

    def __len__(self) -> int:
        return len(self._running)

    async def ready(self) -> list[str]:
        """Wait until the first replica can run; names of the checkpoint tensors it opened.

        Raises:
            SessionLostError: it could not start.
        """
        return await self._running[0].replica.opened()

    def new_cache(self, owner: str, reserve: int) -> Place:
        """See `Runner`. Replicas promise no room, so a reservation is refused rather than broken later."""
        if reserve:
            raise CacheFullError("this server runs on several machines and reserves no positions; ask for none")
        self._follow()
        least = min(self._running, key=lambda running: len(running.sessions))
        if len(least.sessions) >= self._scale.sessions_each and len(self._running) < self._scale.most:
            # It takes a while to load; whoever comes until then waits for it.
            least = self._begin()
        self._next += 1
        least.sessions.add(self._next)
        return Place(least, self._next, owner)

    async def run(self, hidden: torch.Tensor, place: Placement, cache: Place) -> Computed:
        """See `Runner`."""
        running = cache.replica
        if not running.alive:
            raise SessionLostError("the replica that held the session has died")
        try:
            return await running.replica.run(cache.session, cache.owner, hidden, place)
        except SessionLostError:
            self._bury(running)
            raise

    def release(self, cache: Place) -> None:
        """See `Runner`."""
        running = cache.replica
        running.sessions.discard(cache.session)
        if not running.sessions:
            running.emptied = time.monotonic()
        if running.alive:
            running.replica.release(cache.session)

    def cache_bytes(self) -> None:
        """See `Runner`. Caches are on other machines."""

    def close(self) -> None:
        """See `Runner`."""
        for running in self._running:
            running.replica.stop()
        self._running.clear()
        self._stopped()

    def _begin(self) -> _Running:
        running = _Running(self._start())
        self._running.append(running)
        log.info("replica_started", replicas=len(self._running))
        return running

    def _bury(self, running: _Running) -> None:
        """Its sessions are lost. Another takes its place."""
        if not running.alive:
            return
        running.alive = False
        running.replica.stop()
        self._running.remove(running)
        log.warning("replica_died", sessions=len(running.sessions), replicas=len(self._running))
        if not self._running:
            self._begin()

    def _follow(self) -> None:
        """Stop a replica that nobody has used for long."""
        oldest = time.monotonic() - self._scale.idle_s
        for running in self._running[1:]:
            if not running.sessions and running.emptied < oldest:
                self._running.remove(running)
                running.alive = False
                running.replica.stop()
                log.info("replica_stopped", replicas=len(self._running))
