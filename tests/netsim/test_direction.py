"""What a link does to packets, with a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import InputError
from cutlayer.netsim.direction import Direction
from cutlayer.netsim.shape import Shape

sizes = st.lists(st.integers(40, 1500), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rtt_ms": -1}, "round trip of -1 ms"),
        ({"rtt_ms": 1e9}, "give 0 to 10000"),
        ({"rtt_ms": math.nan}, "round trip of nan"),
        ({"rtt_ms": 80, "mbit_s": -5}, "rate of -5 Mbit/s"),
        ({"rtt_ms": 80, "mbit_s": math.inf}, "rate of inf"),
        ({"rtt_ms": 80, "loss": 1.5}, "loss of 1.5"),
        ({"rtt_ms": 80, "queue_kb": 0}, "queue of 0 kB"),
        ({"rtt_ms": 80, "jitter_ms": 41}, "more than the 40 ms"),
    ],
)
def test_impossible_links_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Shape(**values)


def test_empty_link_takes_half_the_round_trip() -> None:
    assert Direction(Shape(rtt_ms=80), "out").carry(1500, 7.0) == pytest.approx(7.04)


def test_rate_spaces_a_burst_by_the_length_of_its_packets() -> None:
    direction = Direction(Shape(rtt_ms=80, mbit_s=12), "out")  # 1500 bytes take 1 ms
    arrivals = [direction.carry(1500, 0.0) for _ in range(50)]
    assert arrivals == pytest.approx([0.040 + 0.001 * (i + 1) for i in range(50)])
    assert direction.carry(1500, 10.0) == pytest.approx(10.041), "the queue has run empty meanwhile"


def test_full_queue_drops_what_comes_last() -> None:
    direction = Direction(Shape(rtt_ms=80, mbit_s=12, queue_kb=15.1), "out")
    arrivals = [direction.carry(1500, 0.0) for _ in range(15)]
    assert [arrival is None for arrival in arrivals] == [False] * 10 + [True] * 5
    assert direction.overflowed == 5
    assert direction.carry(1500, 0.0011) is not None, "one packet has left by now"


@given(sizes, st.floats(0.1, 1000), st.floats(0, 0.5))
def test_no_packet_is_early_or_faster_than_the_rate(sizes: list[int], mbit_s: float, gap_s: float) -> None:
    shape = Shape(rtt_ms=20, mbit_s=mbit_s, queue_kb=1e6)
    direction = Direction(shape, "out")
    sent_bytes, first, now = 0, None, 0.0
    for size in sizes:
        arrival = direction.carry(size, now)
        assert arrival is not None
        assert arrival >= now + 0.01 + size / shape.bytes_per_s - 1e-9
        first = first if first is not None else arrival - size / shape.bytes_per_s
        sent_bytes += size
        assert arrival - first >= sent_bytes / shape.bytes_per_s - 1e-6
        now += gap_s


@given(st.integers(0, 1 << 30), st.floats(0, 0.001))
def test_jitter_keeps_order_unless_asked(seed: int, gap_s: float) -> None:
    def arrivals(reorder: bool) -> list[float]:
        direction = Direction(Shape(rtt_ms=100, jitter_ms=50, reorder=reorder, seed=seed), "out")
        taken = [direction.carry(100, i * gap_s) for i in range(100)]
        assert all(
            arrival is not None and i * gap_s <= arrival <= i * gap_s + 0.1 + 0.1 for i, arrival in enumerate(taken)
        )
        return [arrival for arrival in taken if arrival is not None]

    ordered, free = arrivals(reorder=False), arrivals(reorder=True)
    assert ordered == sorted(ordered)
    assert free != sorted(free)


def test_loss_is_what_was_asked_and_repeatable() -> None:
    def lost(seed: int | None, salt: str = "out") -> list[bool]:
        direction = Direction(Shape(rtt_ms=0, loss=0.2, seed=seed), salt)
        gone = [direction.carry(1000, 0.0) is None for _ in range(10_000)]
        assert direction.lost == sum(gone)
        return gone

    assert 0.18 < sum(lost(5)) / 10_000 < 0.22  # five standard deviations
    assert lost(5) == lost(5)
    assert lost(5) != lost(6)
    assert lost(5) != lost(5, "back"), "the two directions have chances of their own"
    assert lost(None) != lost(None)
