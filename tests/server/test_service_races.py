"""What happens to a session while its step is still in the model: resumed, closed, expired, lost, cancelled.

The engine here runs a step when the test says so, and the loop turns only between the test's lines.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from cutlayer.errors import ConnectionLostError, RemoteCode
from cutlayer.server.engine import Computed
from cutlayer.server.service import Service
from cutlayer.server.sessions import Limits, SessionTable
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.prefix import PrefixDigests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

    from cutlayer.tree import Placement

HIDDEN = 2
CODEC = CODECS.get("fp32")
CUT = Cut(0, 1, 1)
INFO = frames.InfoReply(1, "0", "tiny", "f", CUT, "float32", "cpu", HIDDEN, 100, CODECS.names(), 0.0, [], 0)


class Cache:
    """The rows that went through the engine."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []


class HeldEngine:
    """Returns its input, when told to."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.released: list[Cache] = []

    def new_cache(self, owner: str, reserve: int) -> Cache:
        return Cache()

    def release(self, cache: Cache) -> None:
        self.released.append(cache)

    def cache_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass

    async def run(self, hidden: torch.Tensor, place: Placement, cache: Cache) -> Computed:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        cache.rows[place.anchor :] = [cache.rows[place.anchor + distance] for distance in place.path]
        await turn
        cache.rows += hidden.tolist()
        return Computed(hidden, 7)

    def finish(self, error: Exception | None = None) -> None:
        """Let the oldest step go on."""
        turn = self.waiting.pop(0)
        if error is None:
            turn.set_result(None)
        else:
            turn.set_exception(error)


class Peer:
    """A client's connection, as far as the service sees it."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.closed = False
        self.answers: list[Any] = []
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, header: frames.Header, payload: bytes = b"") -> None:
        self._inbox.put_nowait(frames.encode(header, payload))

    def vanish(self) -> None:
        self._inbox.put_nowait(None)

    async def send(self, data: bytes) -> None:
        self.answers.append(frames.decode(data).header)

    async def recv(self) -> bytes:
        data = await self._inbox.get()
        if data is None:
            raise ConnectionLostError("gone")
        return data

    async def close(self) -> None:
        self.closed = True


class World:
    """A service with a held engine, and its clients."""

    def __init__(self, limits: Limits) -> None:
        self.engine = HeldEngine()
        self.table = SessionTable(self.engine, HIDDEN, limits)
        self.service = Service(self.engine, self.table, INFO)
        self.tasks: list[asyncio.Task[None]] = []

    def join(self, identity: str = "alice") -> Peer:
        peer = Peer(identity)
        self.tasks.append(asyncio.ensure_future(self.service.serve(peer)))
        return peer

    async def opened(self, identity: str = "alice") -> tuple[Peer, bytes]:
        """A client with a session."""
        peer = self.join(identity)
        peer.say(frames.Open(1, "f", CUT, "fp32", 0))
        await self.turn()
        return peer, peer.answers[-1].session

    async def turn(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def row(value: float) -> bytes:
    return CODEC.encode(torch.full((1, HIDDEN), value))


def digest(*values: float) -> bytes:
    digests = PrefixDigests()
    digests.extend(b"".join(row(value) for value in values), len(row(0.0)))
    return digests.at(len(values))


def step(sequence: int, *before: float) -> frames.Step:
    return frames.Step(sequence, len(before), 1, 0, digest(*before))


def play(scenario: Callable[[World], Coroutine[Any, Any, None]], limits: Limits | None = None) -> None:
    """Run a scenario in a loop of its own."""

    async def whole() -> None:
        world = World(limits or Limits())
        await scenario(world)
        await world.end()

    asyncio.run(whole())


def test_a_resume_waits_for_the_step_in_the_model_and_then_knows_of_it() -> None:
    async def scenario(world: World) -> None:
        old, session = await world.opened()
        old.say(step(1), row(1))
        await world.turn()
        new = world.join()
        new.say(frames.Resume(session, 2, 1))
        await world.turn()
        assert new.answers == []
        world.engine.finish()
        await world.turn()
        assert new.answers == [frames.Resumed(2, 1, digest(1))]

    play(scenario)


def test_steps_queued_on_the_old_connection_are_fenced_off() -> None:
    async def scenario(world: World) -> None:
        old, session = await world.opened()
        for i in range(4):
            old.say(step(i + 1, *range(1, i + 1)), row(i + 1))
        await world.turn()
        new = world.join()
        new.say(frames.Resume(session, 2, 4))
        new.say(step(1, 1), row(9))
        await world.turn()
        world.engine.finish()
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert [type(answer) for answer in new.answers] == [frames.Resumed, frames.Result]
        assert new.answers[0].position == 1
        assert [type(answer) for answer in old.answers] == [frames.Opened, frames.Result, frames.Failure]
        assert old.answers[-1].code is RemoteCode.STALE_EPOCH
        assert old.answers[-1].fatal
        assert old.closed
        assert world.engine.waiting == []
        assert world.table.find(session, "alice").cache.rows == [[1, 1], [9, 9]]

    play(scenario)


def test_of_two_resumes_that_wait_the_later_epoch_stays() -> None:
    async def scenario(world: World) -> None:
        old, session = await world.opened()
        old.say(step(1), row(1))
        await world.turn()
        second, first = world.join(), world.join()
        second.say(frames.Resume(session, 3, 1))
        await world.turn()
        first.say(frames.Resume(session, 2, 1))
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert second.answers == [frames.Resumed(3, 1, digest(1))]
        assert first.answers[0].code is RemoteCode.STALE_EPOCH
        second.say(step(1, 1), row(2))
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert isinstance(second.answers[-1], frames.Result)

    play(scenario)


def test_a_resume_that_waited_for_a_session_which_then_closed_is_told_so() -> None:
    async def scenario(world: World) -> None:
        old, session = await world.opened()
        old.say(step(1), row(1))
        old.say(frames.Close())
        await world.turn()
        new = world.join()
        new.say(frames.Resume(session, 2, 1))
        await world.turn()
        world.engine.finish()
        await world.turn()
        # Which of the two comes first is open; nobody may be left with a session that is not in the table.
        if isinstance(new.answers[0], frames.Resumed):
            assert old.answers[-1].code is RemoteCode.STALE_EPOCH
            assert len(world.table) == 1
        else:
            assert new.answers[0].code is RemoteCode.UNKNOWN_SESSION
            assert isinstance(old.answers[-1], frames.Closed)
            assert len(world.table) == 0

    play(scenario)


def test_a_session_does_not_expire_under_its_step() -> None:
    async def scenario(world: World) -> None:
        peer, session = await world.opened()
        peer.say(step(1), row(1))
        await world.turn()
        world.table.find(session, "alice").used -= 1000
        assert world.table.expire() == 0
        world.engine.finish()
        await world.turn()
        assert isinstance(peer.answers[-1], frames.Result)
        world.table.find(session, "alice").used -= 1000
        assert world.table.expire() == 1
        peer.say(step(2, 1), row(2))
        await world.turn()
        assert peer.answers[-1].code is RemoteCode.UNKNOWN_SESSION
        assert not peer.answers[-1].fatal
        peer.say(frames.Open(1, "f", CUT, "fp32", 0))
        await world.turn()
        assert isinstance(peer.answers[-1], frames.Opened)

    play(scenario)


def test_a_connection_whose_session_expired_may_open_another_at_once() -> None:
    async def scenario(world: World) -> None:
        peer, session = await world.opened()
        world.table.close(world.table.find(session, "alice"))
        peer.say(frames.Open(1, "f", CUT, "fp32", 0))
        await world.turn()
        assert isinstance(peer.answers[-1], frames.Opened)

    play(scenario)


def test_a_step_outlives_the_connection_it_came_on() -> None:
    async def scenario(world: World) -> None:
        old, session = await world.opened()
        old.say(step(1), row(1))
        old.vanish()
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert old.closed
        new = world.join()
        new.say(frames.Resume(session, 2, 1))
        await world.turn()
        assert new.answers == [frames.Resumed(2, 1, digest(1))]

    play(scenario)


def test_a_failing_engine_leaves_the_session_where_the_step_began() -> None:
    async def scenario(world: World) -> None:
        peer, session = await world.opened()
        for i in range(2):
            peer.say(step(i + 1, *range(1, i + 1)), row(i + 1))
            await world.turn()
            world.engine.finish()
            await world.turn()
        peer.say(step(3, 1), row(5))
        await world.turn()
        world.engine.finish(MemoryError("device full"))
        await world.turn()
        assert peer.answers[-1].code is RemoteCode.INTERNAL
        assert not peer.answers[-1].fatal
        assert "device full" not in peer.answers[-1].message
        peer.say(step(3, 1, 2), row(6))
        await world.turn()
        assert peer.answers[-1].code is RemoteCode.BAD_STEP  # the second row went with the step that replaced it
        peer.say(step(3, 1), row(6))
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert isinstance(peer.answers[-1], frames.Result)
        assert world.table.find(session, "alice").cache.rows == [[1, 1], [6, 6]]

    play(scenario)


def test_a_cancelled_step_leaves_the_cache_to_the_engine() -> None:
    """The engine's thread may still be writing to it."""

    async def scenario(world: World) -> None:
        old, session = await world.opened()
        old.say(step(1), row(1))
        await world.turn()
        held = world.table.find(session, "alice")
        world.tasks[0].cancel()
        await world.turn()
        assert not held.lock.locked()
        assert held.wire.position == 0
        held.cache.rows += [[1.0, 1.0]]  # the thread finishes what nobody waits for
        new = world.join()
        new.say(frames.Resume(session, 2, 0))
        new.say(step(1), row(3))
        world.engine.waiting.clear()
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert isinstance(new.answers[-1], frames.Result)
        assert held.cache.rows == [[3, 3]]

    play(scenario)


def test_output_that_is_not_finite_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        peer, session = await world.opened()
        run = world.engine.run

        async def overflowing(hidden: torch.Tensor, place: Placement, cache: Cache) -> Computed:
            return (await run(hidden, place, cache))._replace(hidden=hidden * torch.inf)

        monkeypatch.setattr(world.engine, "run", overflowing)
        peer.say(step(1), row(1))
        await world.turn()
        world.engine.finish()
        await world.turn()
        assert peer.answers[-1].code is RemoteCode.NON_FINITE
        assert world.table.find(session, "alice").wire.position == 0

    play(scenario)


def test_one_client_cannot_have_more_sessions_than_its_share() -> None:
    async def scenario(world: World) -> None:
        await world.opened("mallory")
        await world.opened("mallory")
        greedy = world.join("mallory")
        greedy.say(frames.Open(1, "f", CUT, "fp32", 0))
        await world.turn()
        assert greedy.answers[-1].code is RemoteCode.LIMIT
        await world.opened("alice")
        assert len(world.table) == 3

    play(scenario, Limits(sessions=4, sessions_per_owner=2))


def test_very_long_steps_still_fit_the_result_header(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        peer, _ = await world.opened()

        async def slow(hidden: torch.Tensor, place: Placement, cache: Cache) -> Computed:
            return Computed(hidden, 1 << 40)

        monkeypatch.setattr(world.engine, "run", slow)
        peer.say(step(1), row(1))
        await world.turn()
        assert peer.answers[-1].compute_us == 0xFFFF_FFFF

    play(scenario)


def test_info_tells_the_time_and_what_runs() -> None:
    async def scenario(world: World) -> None:
        peer = world.join()
        peer.say(frames.Info())
        await world.turn()
        assert peer.answers[-1].time > 1.7e9
        assert msgspec.structs.replace(peer.answers[-1], time=0.0) == INFO

    play(scenario)
