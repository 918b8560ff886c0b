"""Which session a request gets, and that no key meets another's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cutlayer.errors import ConnectionLostError
from cutlayer.gateway.pool import SessionPool, Slot
from cutlayer.gateway.problems import ApiError

SYSTEM = [1, 2, 3]
TALK = [*SYSTEM, *range(100, 140)]
OTHER_TALK = [*SYSTEM, *range(200, 240)]


class Session:
    """Holds what it was told to."""

    made = 0

    def __init__(self) -> None:
        self.held: list[int] = []
        self.released = 0
        self.ended = ""
        Session.made += 1

    def another(self) -> Session:
        return Session()

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


def pool_of(sessions: int = 3, waiting: int = 2) -> SessionPool:
    first: Any = Session()
    return SessionPool(first, sessions, waiting)


async def used(pool: SessionPool, owner: str, prompt: list[int]) -> Slot:
    """Take, hold the prompt, give back."""
    slot = await pool.take(owner, prompt)
    slot.prepare(owner).held[:] = prompt  # type: ignore[index]
    pool.give(slot, 1.0)
    return slot


def test_a_conversation_goes_on_in_its_session() -> None:
    async def run() -> None:
        pool = pool_of()
        one = await used(pool, "a", TALK)
        other = await used(pool, "a", OTHER_TALK)
        assert other is not one  # a shared system prompt is no reason to lose a conversation
        assert await used(pool, "a", [*TALK, 5, 6]) is one
        assert await used(pool, "a", [*OTHER_TALK, 5, 6]) is other
        assert await used(pool, "a", TALK[:30]) is not other

    asyncio.run(run())


def test_sessions_are_opened_when_needed_and_no_sooner() -> None:
    async def run() -> None:
        Session.made = 0
        pool = pool_of(3)
        await used(pool, "a", TALK)
        assert Session.made == 1
        held = [await pool.take("a", TALK) for _ in range(3)]
        for slot in held:
            slot.prepare("a")
        assert Session.made == 3
        assert len(set(map(id, held))) == 3

    asyncio.run(run())


def test_no_key_gets_a_session_that_another_has_used() -> None:
    """Not even for the very same prompt: being held already shows in the time, and one secret's noise to the server."""

    async def run() -> None:
        pool = pool_of(1)
        slot = await pool.take("a", TALK)
        first: Any = slot.prepare("a")
        first.held[:] = TALK
        pool.give(slot, 1.0)
        slot = await pool.take("b", TALK)
        second: Any = slot.prepare("b")
        assert second is not first
        assert first.ended == "closed"
        assert list(second.held) == []

    asyncio.run(run())


def test_other_keys_sessions_are_taken_last_and_oldest_first() -> None:
    async def run() -> None:
        pool = pool_of(3)
        oldest = await used(pool, "a", TALK)
        younger = await used(pool, "a", OTHER_TALK)
        fresh = await used(pool, "b", TALK)
        assert fresh not in (oldest, younger)
        held = await pool.take("b", [9, 9, 9])
        assert held is fresh  # b's own, though it holds nothing of it
        assert await pool.take("b", TALK) is oldest

    asyncio.run(run())


def test_waiting_is_bounded_per_key_and_fair() -> None:
    async def run() -> None:
        pool = pool_of(1, waiting=2)
        slot = await pool.take("a", TALK)
        order: list[str] = []

        async def wait(owner: str, name: str) -> None:
            got = await pool.take(owner, TALK)
            order.append(name)
            pool.give(got, 0.5)

        waiting = [asyncio.create_task(wait(*who)) for who in [("a", "a1"), ("a", "a2"), ("b", "b1")]]
        await asyncio.sleep(0)
        assert pool.waiting == 3
        with pytest.raises(ApiError) as refused:
            await pool.take("a", TALK)
        assert refused.value.status == 429
        assert refused.value.retry_s is not None
        assert refused.value.retry_s >= 1
        pool.give(slot, 0.5)
        await asyncio.gather(*waiting)
        assert order == ["a1", "b1", "a2"]
        assert pool.in_use == 0

    asyncio.run(run())


def test_who_stops_waiting_takes_no_session_along() -> None:
    async def run() -> None:
        pool = pool_of(1, waiting=5)
        slot = await pool.take("a", TALK)
        gone = asyncio.create_task(pool.take("b", TALK))
        stays = asyncio.create_task(pool.take("c", TALK))
        late = asyncio.create_task(pool.take("d", TALK))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == 2
        pool.give(slot, 0.5)
        stays.cancel()  # it was given the session, and has not noticed yet
        pool.give(await asyncio.wait_for(late, 5), 0.5)
        assert pool.in_use == 0
        assert pool.waiting == 0

    asyncio.run(run())


def test_draining_lets_nobody_in_and_waits_for_those_inside() -> None:
    async def run() -> None:
        pool = pool_of(1)
        slot = await pool.take("a", TALK)
        waiting = asyncio.create_task(pool.take("a", TALK))
        await asyncio.sleep(0)
        pool.drain()
        for refused in (waiting, asyncio.create_task(pool.take("a", TALK))):
            with pytest.raises(ApiError) as error:
                await refused
            assert error.value.status == 503
        idle = asyncio.create_task(pool.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        pool.give(slot, 0.5)
        await asyncio.wait_for(idle, 5)

    asyncio.run(run())


def test_breaking_off_reaches_sessions_in_use_alone() -> None:
    """At the end, when a server does not answer: a thread that waits for it would keep the process."""

    async def run() -> None:
        pool = pool_of(2)
        idle, busy = [await pool.take("a", prompt) for prompt in (TALK, OTHER_TALK)]
        sessions: list[Any] = [slot.prepare("a") for slot in (idle, busy)]
        pool.give(idle, 1.0)
        pool.abort()
        assert [session.ended for session in sessions] == ["", "aborted"]
        pool.give(busy, 1.0)
        pool.close()
        assert sessions[0].ended == "closed"

    asyncio.run(run())


def test_a_session_whose_server_is_gone_is_not_taken_leave_of() -> None:
    first: Any = Session()
    slot = Slot(first, first)
    slot.prepare("a")
    slot.discard(ConnectionLostError("gone"))
    assert first.ended == "aborted"
    assert slot.owner is None
    assert slot.prepare("b") is not first
