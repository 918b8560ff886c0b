"""Rates: who sends too much waits, and only they."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.server.rate import BURST_S, Rates


def test_a_burst_is_free_and_then_paid_for() -> None:
    rates = Rates(100)
    assert rates.owed("a", int(100 * BURST_S), 0.0) == 0
    assert rates.owed("a", 50, 0.0) == 0.5
    assert rates.owed("b", 50, 0.0) == 0
    assert rates.owed("a", 50, 1.0) == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 512)), max_size=60))
def test_in_the_long_run_nobody_exceeds_the_rate(sent: list[tuple[float, int]]) -> None:
    rates = Rates(100)
    now, total = 0.0, 0
    for pause, positions in sent:
        now += pause
        now += rates.owed("a", positions, now)
        total += positions
        assert total <= 100 * (now + BURST_S) + 1e-6
