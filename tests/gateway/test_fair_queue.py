"""Turns: first come first served within an owner, owners in rotation, nobody lost and nobody twice."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.gateway.fair_queue import FairQueue

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc")),
        st.tuples(st.just("next"), st.just("")),
        st.tuples(st.just("remove"), st.integers(0, 30).map(str)),
    ),
    max_size=60,
)


@given(acts=ACTS, limit=st.integers(0, 4))
def test_queue_equals_an_independent_reading(acts: list[tuple[str, str]], limit: int) -> None:
    """The model: a rotation of owners that wait, and a line for each."""
    queue: FairQueue[int] = FairQueue(limit)
    rotation: deque[str] = deque()
    lines: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    owners: dict[int, str] = {}
    for number, (act, argument) in enumerate(acts):
        if act == "add":
            taken = queue.add(argument, number)
            assert taken is (len(lines[argument]) < limit)
            if taken:
                owners[number] = argument
                lines[argument].append(number)
                if argument not in rotation:
                    rotation.append(argument)
        elif act == "remove":
            waiter = int(argument)
            owner = owners.get(waiter, "a")
            queue.remove(owner, waiter)
            if waiter in lines[owner]:
                lines[owner].remove(waiter)
                if not lines[owner]:
                    rotation.remove(owner)
        elif rotation:
            owner = rotation.popleft()
            assert queue.next() == (owner, lines[owner].pop(0))
            if lines[owner]:
                rotation.append(owner)
        else:
            assert queue.next() is None
        assert len(queue) == sum(map(len, lines.values()))


def test_a_busy_owner_does_not_keep_another_waiting() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for i in range(5):
        queue.add("busy", f"busy{i}")
    queue.add("other", "other0")
    assert [queue.next() for _ in range(3)] == [("busy", "busy0"), ("other", "other0"), ("busy", "busy1")]
