"""Secret orders: what they keep, what a resend shows, and what a channel that sorts makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.attacks.attack import ATTACKS, build_attack, prepare
from cutlayer.audit.scene import Scene, attacker_secret
from cutlayer.defences.defence import build_channel, build_defence
from cutlayer.defences.positions import History
from cutlayer.errors import InputError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.types import Secret

AXES = ["columns", "rows", "both"]
KEY = attacker_secret(0, 0, 0)


def states(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def shuffled(axis: str, hidden: torch.Tensor, secret: Secret = KEY) -> torch.Tensor:
    """What leaves of hidden states [T, D] sent in one frame."""
    return build_defence(f"permute:axis={axis}", secret).release(hidden, History().extend(0, range(len(hidden))))


@pytest.mark.parametrize("axis", AXES)
@given(rows=st.integers(1, 9), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_value_leaves_and_no_other(axis: str, rows: int, width: int, seed: int) -> None:
    hidden = states(rows, width, seed)
    left = shuffled(axis, hidden)
    assert torch.equal(left.flatten().sort().values, hidden.flatten().sort().values)
    within = [sorted(row) for row in left.tolist()], [sorted(row) for row in hidden.tolist()]
    assert (within[0] == within[1]) if axis == "columns" else (sorted(within[0]) == sorted(within[1]))
    if axis == "rows":
        assert sorted(left.tolist()) == sorted(hidden.tolist())


def test_every_position_has_an_order_of_coordinates_of_its_own() -> None:
    left = shuffled("columns", torch.arange(64.0).repeat(200, 1))
    assert len(left.unique(dim=0)) == 200
    assert float(left.mean(0).std()) < 3 * 18.5 / 200**0.5  # each place as likely to hold any coordinate


def test_rows_go_anywhere_in_their_frame() -> None:
    hidden = torch.arange(5.0)[:, None]
    places = torch.stack([shuffled("rows", hidden, attacker_secret(0, 0, i))[:, 0] for i in range(2000)])  # [2000, T]
    for row in range(5):
        assert ((places == row).float().mean(0) - 0.2).abs().max() < 0.05


@pytest.mark.parametrize("axis", ["rows", "both"])
def test_the_same_frame_leaves_in_the_same_order_and_other_frames_in_others(axis: str) -> None:
    hidden, ids = states(12, 6), list(range(12))
    defence, history = build_defence(f"permute:axis={axis}", KEY), History()
    whole = defence.release(hidden, history.extend(0, ids))
    assert torch.equal(whole, defence.release(hidden, history.extend(0, ids)))
    assert not torch.equal(whole, defence.release(hidden, history.extend(0, [*ids[:-1], 99])))
    assert not torch.equal(whole, shuffled(axis, hidden, attacker_secret(0, 0, 1)))
    halves = [defence.release(hidden[i : i + 6], history.extend(i, ids[i : i + 6])) for i in (0, 6)]
    for half, rows in zip(halves, (hidden[:6], hidden[6:]), strict=True):
        ours = half.sort(-1).values if axis == "both" else half
        theirs = rows.sort(-1).values if axis == "both" else rows
        assert sorted(ours.tolist()) == sorted(theirs.tolist())  # the frame tells which rows are in it


@pytest.mark.parametrize("axis", AXES)
@given(rows=st.integers(1, 8), sessions=st.integers(1, 5), seed=st.integers(0, 99))
def test_sessions_agree_once_they_are_aligned(axis: str, rows: int, sessions: int, seed: int) -> None:
    hidden = states(rows, 16, seed)
    seen = torch.stack([shuffled(axis, hidden, attacker_secret(0, 0, i)) for i in range(sessions)])  # [N, T, D]
    estimate = build_channel(f"permute:axis={axis}").estimate(seen)
    expected = seen[0] if axis == "rows" else seen[0].sort(-1).values
    assert torch.allclose(estimate, expected, atol=1e-6)


@pytest.mark.parametrize("axis", AXES)
@given(seed=st.integers(0, 99))
def test_a_candidate_is_accepted_in_any_order_of_its_coordinates_that_may_have_left(axis: str, seed: int) -> None:
    row, other = states(2, 24, seed)
    candidates = torch.stack([row, row[torch.randperm(24, generator=torch.Generator().manual_seed(seed))], other])
    accepted = build_channel(f"permute:axis={axis}").accepts(row[None], candidates)
    assert accepted.tolist() == [True, axis != "rows", False]


def test_only_an_attack_that_finds_the_rows_is_run_where_they_leave_out_of_order(tiny: Callable[[str], Path]) -> None:
    directory, cut = tiny("llama"), Cut.parse("2:-2", layers=6)
    scene = Scene(directory, cut, load_client(directory, cut, torch.float32))
    assert scene.under("permute:axis=columns").channel.ordered
    threat = scene.under("permute:axis=rows").threat()
    for name in ("nearest", "search"):
        with pytest.raises(InputError, match=f"{name} takes rows in order"):
            prepare(build_attack(name), threat)
    unordered = {name for name in ATTACKS.names() if not ATTACKS.get(name).card.in_order}
    assert unordered == {"vma", "prior-only"}
