"""Who goes into the next forward. Time is a number here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.server.schedule import MOST_ROWS, SHORT, Schedule, Slice, Step

WINDOW = 0.002


def step(session: str, rows: int, owner: str = "somebody") -> Step:
    return Step(session, owner, rows)


def run(schedule: Schedule, now: float, seconds: float = 0.01) -> list[Slice]:
    slices = schedule.take(now)
    schedule.finished(slices, seconds, now + seconds)
    return slices


def rows(slices: list[Slice]) -> dict[str, int]:
    return {one.step.session: one.stop - one.start for one in slices}


def test_all_short_steps_go_together() -> None:
    schedule = Schedule(WINDOW)
    for name in "abcdefgh":
        schedule.add(step(name, 1), 0.0)
    assert rows(run(schedule, 0.0)) == dict.fromkeys("abcdefgh", 1)
    assert len(schedule) == 0


def test_a_lone_prefill_goes_whole() -> None:
    schedule = Schedule(WINDOW)
    schedule.add(step("a", 300), 0.0)
    assert rows(run(schedule, 0.0)) == {"a": 300}


def test_a_prefill_beside_talk_takes_no_longer_than_the_talk() -> None:
    schedule = Schedule(WINDOW)
    schedule.add(step("warm", 400), -20.0)
    run(schedule, -20.0, seconds=0.4)  # 1 ms a row
    for turn in range(5):
        schedule.add(step("talker", 1), turn * 0.1)
        run(schedule, turn * 0.1, seconds=0.02)  # a light forward takes 20 ms
    schedule.add(step("talker", 1), 1.0)
    schedule.add(step("reader", 400), 1.0)
    assert rows(run(schedule, 1.0, seconds=0.04)) == {"talker": 1, "reader": 20}
    assert rows(run(schedule, 1.1, seconds=0.02)) == {"reader": 20}, "the talker may ask again at any moment"
    assert rows(run(schedule, 9.0)) == {"reader": 360}, "nobody has talked for long"


def test_tenants_take_turns() -> None:
    schedule = Schedule(WINDOW)
    for i in range(20):
        schedule.add(step(f"greedy {i}", 400, "greedy"), 0.0)
    schedule.add(step("modest", 400, "modest"), 0.0)
    served: set[str] = set()
    for turn in range(4):
        served |= {one.step.owner for one in run(schedule, float(turn))}
    assert served == {"greedy", "modest"}


def test_it_waits_for_sessions_that_are_about_to_ask_and_no_longer() -> None:
    schedule = Schedule(WINDOW)
    for turn in range(3):
        for name in "ab":
            schedule.add(step(name, 1), turn * 0.02)
        run(schedule, turn * 0.02, seconds=0.019)  # both ask 1 ms after their answer
    schedule.add(step("a", 1), 0.0596)
    assert 0 < schedule.hold(0.0596, since=0.0596) <= WINDOW
    assert schedule.hold(0.0617, since=0.0596) == 0
    schedule.add(step("b", 1), 0.06)
    assert schedule.hold(0.06, since=0.0596) == 0


def test_a_lone_session_never_waits() -> None:
    schedule = Schedule(WINDOW)
    for turn in range(3):
        schedule.add(step("a", 1), turn * 0.02)
        assert schedule.hold(turn * 0.02, since=turn * 0.02) == 0
        run(schedule, turn * 0.02)


def test_a_dropped_session_leaves_nothing_behind() -> None:
    schedule = Schedule(WINDOW)
    schedule.add(step("a", 400), 0.0)
    schedule.add(step("b", 1), 0.0)
    assert [one.session for one in schedule.drop("a")] == ["a"]
    assert rows(run(schedule, 0.0)) == {"b": 1}


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 700), st.sampled_from(["x", "y"])), min_size=1, max_size=6,
             unique_by=lambda item: item[0]),
    st.booleans(),
)  # fmt: skip
def test_every_row_runs_once_in_order_and_no_forward_is_too_long(asked: list[tuple[str, int, str]], talk: bool) -> None:
    schedule = Schedule(WINDOW)
    if talk:
        schedule.add(step("talker", 1), 0.0)
        run(schedule, 0.0)
    for name, count, owner in asked:
        schedule.add(step(name, count, owner), 0.0)
    at = dict.fromkeys((name for name, _, _ in asked), 0)
    for turn in range(2000):
        if not schedule:
            break
        slices = run(schedule, turn * 0.01)
        assert slices, "a schedule with steps must go on"
        assert sum(stop - start for _, start, stop in slices) <= MOST_ROWS + SHORT
        for one, start, stop in slices:
            assert start == at[one.session] < stop
            at[one.session] = stop
    assert at == {name: count for name, count, _ in asked}
