"""The engine with a real body: batches, slices, failures and cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.errors import CacheFullError
from cutlayer.models.pages import PAGE
from cutlayer.models.parts import load_body
from cutlayer.server.engine import Computed, Engine
from cutlayer.tree import Placement
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HIDDEN = 32
CUT = Cut(1, 5, 6)
TOLERANCE = 1e-4


def states(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def engine(tiny: Callable[[str], Path]) -> Iterator[Engine]:
    made = Engine(load_body(tiny("llama"), CUT, torch.float32), positions=64 * PAGE, per_owner=40 * PAGE)
    yield made
    made.close()


@pytest.fixture
def alone(tiny: Callable[[str], Path]) -> Callable[[torch.Tensor], torch.Tensor]:
    body = load_body(tiny("llama"), CUT, torch.float32)

    def run(hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return body(hidden[None], body.new_cache())[0]

    return run


def test_concurrent_sessions_get_what_each_would_get_alone(
    engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    async def talk(seed: int) -> float:
        hidden = states(200, seed)
        cache = engine.new_cache(f"owner {seed % 3}", 0)
        outputs = [(await engine.run(hidden[:150], Placement(0), cache)).hidden]
        outputs += [(await engine.run(hidden[at : at + 1], Placement(at), cache)).hidden for at in range(150, 200)]
        error: float = (torch.cat(outputs) - alone(hidden)).abs().max().item()
        engine.release(cache)
        return error

    async def all_at_once() -> list[float]:
        return await asyncio.gather(*(talk(seed) for seed in range(6)))

    assert max(asyncio.run(all_at_once())) < TOLERANCE
    engine.close()
    assert engine.cache_bytes() == 0


def test_a_step_rolls_back_first(engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]) -> None:
    async def scenario() -> torch.Tensor:
        cache = engine.new_cache("a", 0)
        await engine.run(states(90, 1), Placement(0), cache)
        return (await engine.run(states(20, 2), Placement(70), cache)).hidden

    expected = alone(torch.cat([states(90, 1)[:70], states(20, 2)]))[70:]
    assert (asyncio.run(scenario()) - expected).abs().max() < TOLERANCE


def test_a_path_is_kept_and_gone_on_from(engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Two guesses after row 69, one of them continued; the second of the two and its continuation stay."""

    async def scenario() -> list[torch.Tensor]:
        cache = engine.new_cache("a", 0)
        await engine.run(states(70, 1), Placement(0), cache)
        guessed = await engine.run(states(3, 2), Placement(70, backs=(1, 2, 1)), cache)
        follows = await engine.run(states(2, 3), Placement(72, path=(1, 2)), cache)
        return [guessed.hidden, follows.hidden]

    guessed, follows = asyncio.run(scenario())
    right = torch.cat([states(70, 1), states(3, 2)[1:], states(2, 3)])
    assert (guessed[:1] - alone(torch.cat([states(70, 1), states(3, 2)[:1]]))[70:]).abs().max() < TOLERANCE
    assert (torch.cat([guessed[1:], follows]) - alone(right)[70:]).abs().max() < TOLERANCE


def test_a_tree_that_goes_in_slices_stays_a_tree(engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Beside somebody who talks, a long step is cut up; its branches reach back over the cuts."""
    backs = [1] * 60 + [50, 1, 1, 1, 40] + [1] * 30 + [70] + [1] * 54
    rows = torch.cat([states(20, 1), states(150, 2)])
    parents = [*range(-1, 19), *(20 + i - back for i, back in enumerate(backs))]

    def path(slot: int) -> list[int]:
        return [*(path(parents[slot]) if parents[slot] >= 0 else ()), slot]

    async def talk() -> None:
        cache = engine.new_cache("talker", 0)
        for at in range(30):
            await engine.run(states(1, at), Placement(at), cache)

    async def scenario() -> torch.Tensor:
        cache = engine.new_cache("a", 0)
        await engine.run(rows[:20], Placement(0), cache)
        talking = asyncio.ensure_future(talk())
        await asyncio.sleep(0.05)
        found = await engine.run(rows[20:], Placement(20, backs=backs), cache)
        await talking
        return found.hidden

    output = asyncio.run(scenario())
    for slot in (79, 80, 84, 100, 114, 115, 169):
        assert (output[slot - 20] - alone(rows[path(slot)])[-1]).abs().max() < TOLERANCE


def test_one_sessions_failure_is_not_the_others(engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]) -> None:
    async def scenario() -> list[Computed | BaseException]:
        good, bad = engine.new_cache("a", 0), engine.new_cache("b", 0)
        return await asyncio.gather(
            engine.run(states(5, 1), Placement(0), good),
            engine.run(torch.zeros(5, HIDDEN + 1), Placement(0), bad),  # does not fit the model
            return_exceptions=True,
        )

    fine, failed = asyncio.run(scenario())
    assert isinstance(failed, RuntimeError)
    assert isinstance(fine, Computed)
    assert (fine.hidden - alone(states(5, 1))).abs().max() < TOLERANCE


def test_no_room_is_an_error_of_that_step_alone(engine: Engine) -> None:
    async def scenario() -> None:
        greedy, other = engine.new_cache("greedy", 0), engine.new_cache("other", 0)
        with pytest.raises(CacheFullError, match="your sessions hold"):
            await engine.run(states(41 * PAGE, 1), Placement(0), greedy)
        assert len((await engine.run(states(3, 1), Placement(0), other)).hidden) == 3
        assert len((await engine.run(states(3, 1), Placement(0), greedy)).hidden) == 3

    asyncio.run(scenario())


def test_a_cancelled_step_does_not_run_and_its_session_goes_on(
    engine: Engine, alone: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    async def scenario() -> torch.Tensor:
        cache = engine.new_cache("a", 0)
        waiting = asyncio.ensure_future(engine.run(states(30 * PAGE, 1), Placement(0), cache))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await engine.run(states(7, 2), Placement(0), cache)).hidden

    assert (asyncio.run(scenario()) - alone(states(7, 2))).abs().max() < TOLERANCE


def test_a_released_session_gives_its_pages_back_and_its_step_up(engine: Engine) -> None:
    async def scenario() -> None:
        cache = engine.new_cache("a", 0)
        waiting = asyncio.ensure_future(engine.run(states(39 * PAGE, 1), Placement(0), cache))
        await asyncio.sleep(0)
        engine.release(cache)
        await asyncio.wait([waiting])
        other = engine.new_cache("a", 0)
        await engine.run(states(39 * PAGE, 1), Placement(0), other)

    asyncio.run(scenario())


def test_a_path_that_found_no_room_can_be_kept_later(tiny: Callable[[str], Path]) -> None:
    engine = Engine(load_body(tiny("llama"), CUT, torch.float32), positions=4 * PAGE)
    place = Placement(PAGE - 2, path=(1, 2))

    async def scenario() -> torch.Tensor:
        one, other = engine.new_cache("one", 0), engine.new_cache("other", 0)
        await engine.run(states(PAGE - 4, 1), Placement(0), one)
        await engine.run(states(3 * PAGE, 1), Placement(0), other)
        await engine.run(states(3, 2), Placement(PAGE - 4, backs=(1, 2, 1)), one)
        with pytest.raises(CacheFullError):
            await engine.run(states(5, 3), place, one)
        engine.release(other)
        return (await engine.run(states(5, 3), place, one)).hidden

    found = asyncio.run(scenario())
    engine.close()
    body = load_body(tiny("llama"), CUT, torch.float32)
    rows = torch.cat([states(PAGE - 4, 1), states(3, 2)[1:], states(5, 3)])[None]
    with torch.inference_mode():
        assert (found - body(rows, body.new_cache())[0][-5:]).abs().max() < 1e-4
