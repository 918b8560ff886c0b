"""Replicas without machines: where sessions go, and what a death costs."""

from __future__ import annotations

import asyncio

import pytest
import torch

from cutlayer.errors import CacheFullError, SessionLostError
from cutlayer.server import replicas as module
from cutlayer.server.engine import Computed
from cutlayer.server.replicas import ReplicaEngine, Scale
from cutlayer.tree import Placement


class Fake:
    """A replica that returns what it gets, until it dies."""

    def __init__(self) -> None:
        self.dead = self.stopped = False
        self.released: list[int] = []

    async def opened(self) -> list[str]:
        return ["weight"]

    async def run(self, session: int, owner: str, hidden: torch.Tensor, place: Placement) -> Computed:
        if self.dead:
            raise SessionLostError("dead")
        return Computed(hidden, 1)

    def release(self, session: int) -> None:
        self.released.append(session)

    def stop(self) -> None:
        self.stopped = True


class World:
    def __init__(self, scale: Scale) -> None:
        self.made: list[Fake] = []
        self.engine = ReplicaEngine(self.start, scale)

    def start(self) -> Fake:
        self.made.append(Fake())
        return self.made[-1]


ROW = torch.ones(1, 2)


def test_replicas_follow_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Scale(most=2, sessions_each=2, idle_s=100))
    places = [world.engine.new_cache("a", 0) for _ in range(6)]
    assert [len(place.replica.sessions) for place in places] == [3] * 6
    assert len(world.made) == len(world.engine) == 2
    for place in places:
        world.engine.release(place)
    later = module.time.monotonic() + 200
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    world.engine.new_cache("a", 0)
    assert [fake.stopped for fake in world.made] == [False, True]


def test_a_death_costs_its_own_sessions_only() -> None:
    async def scenario() -> None:
        world = World(Scale(most=2, sessions_each=1))
        one, two = world.engine.new_cache("a", 0), world.engine.new_cache("a", 0)
        world.made[0].dead = True
        with pytest.raises(SessionLostError):
            await world.engine.run(ROW, Placement(0), one)
        assert world.made[0].stopped
        assert (await world.engine.run(ROW, Placement(0), two)).microseconds == 1
        with pytest.raises(SessionLostError):
            await world.engine.run(ROW, Placement(0), one)
        world.engine.release(one)
        again = world.engine.new_cache("a", 0)
        assert (await world.engine.run(ROW, Placement(0), again)).microseconds == 1

    asyncio.run(scenario())


def test_the_last_replica_is_replaced() -> None:
    async def scenario() -> None:
        world = World(Scale())
        place = world.engine.new_cache("a", 0)
        world.made[0].dead = True
        with pytest.raises(SessionLostError):
            await world.engine.run(ROW, Placement(0), place)
        await world.engine.run(ROW, Placement(0), world.engine.new_cache("a", 0))
        assert len(world.made) == 2

    asyncio.run(scenario())


def test_no_reservation_is_promised() -> None:
    with pytest.raises(CacheFullError, match="reserves no positions"):
        World(Scale()).engine.new_cache("a", 5)
