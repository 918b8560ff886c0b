"""The soak of benchmarks/soak.py in small, and that its judgement is one: it must see a lost, doubled or wrong token."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXPECTED = [5, 9, 2, 7, 7, 4]


@pytest.fixture
def soaking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak")


def test_nothing_is_lost_doubled_wrong_or_left_behind(
    soaking: ModuleType, tiny_with_text: Callable[[str], Path]
) -> None:
    plan = soaking.Plan(
        str(tiny_with_text("llama")), sessions=8, seconds=20.0, kill_every_s=4.0, cut_every_s=2.0, reopened=0.1
    )
    outcome = soaking.soak(plan)
    assert soaking.unsound(outcome) == []
    assert outcome.problems == []
    counts = outcome.counts
    assert counts["kills"] >= 1  # each costs a start, which takes long where cores are shared
    assert counts["resumes"] >= plan.sessions * 0.5
    assert counts["answers"] > plan.sessions
    for sort in ("cancels", "cuts", "reopened"):
        assert counts[sort] > 0, sort
    assert outcome.cache_bytes_after == 0


@pytest.mark.parametrize(
    ("got", "complete", "found"),
    [
        (EXPECTED, True, {}),
        (EXPECTED[:3], False, {}),
        ([], False, {}),
        (EXPECTED[:3], True, {"lost": 3}),
        ([5, 2, 7, 7, 4], True, {"lost": 1}),
        ([5, 2, 7], False, {"lost": 1}),
        ([5, 9, 9, 2, 7, 7, 4], True, {"doubled": 1}),
        ([5, 9, 9, 2], False, {"doubled": 1}),
        ([*EXPECTED, 4], True, {"doubled": 1}),
        ([5, 9, 3, 7, 7, 4], True, {"wrong": 1}),
        ([5, 9, 3], False, {"wrong": 1}),
        ([1, 1, 1, 1, 1, 1], True, {"wrong": 6}),
    ],
)
def test_every_difference_is_seen(soaking: ModuleType, got: list[int], complete: bool, found: dict[str, int]) -> None:
    assert soaking.differences(got, EXPECTED, complete=complete) == found


@pytest.mark.parametrize(
    "changed",
    [
        {"counts": Counter(lost=1)},
        {"counts": Counter(doubled=1)},
        {"counts": Counter(wrong=1)},
        {"counts": Counter(failed=1)},
        {"counts": Counter(died=1)},
        {"sessions_after": 1},
        {"cache_bytes_after": 4096},
        {"handles_after": 15},
    ],
    ids=str,
)
def test_every_fault_is_one(soaking: ModuleType, changed: dict[str, object]) -> None:
    sound = soaking.Outcome(Counter(answers=9), [], 1.0, 12, 13, [], [], 0, 0, 0)
    assert soaking.unsound(sound) == []
    assert len(soaking.unsound(sound._replace(**changed))) == 1


def test_a_wrong_reference_does_not_pass(
    soaking: ModuleType, tiny_with_text: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is with the unsplit model's tokens and nothing else: change one of them, and answers are wrong."""
    right = soaking.references

    def changed(*arguments: object) -> list[object]:
        return [known._replace(tokens=[known.tokens[0] ^ 1, *known.tokens[1:]]) for known in right(*arguments)]

    monkeypatch.setattr(soaking, "references", changed)
    outcome = soaking.soak(soaking.Plan(str(tiny_with_text("llama")), sessions=2, seconds=2.0))
    assert outcome.counts["wrong"] > 0
    assert all(problem["logit_margin"] is not None for problem in outcome.problems if problem["got"])
    assert any("wrong" in fault for fault in soaking.unsound(outcome))
