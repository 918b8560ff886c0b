"""The margin map against the head run on every candidate by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.audit.margins import candidate_states, margin_map, nearest_rows
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.parts import Head, load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOCABULARY = 101
PREFIX = [5, 17, 99, 3, 42]


def head_of(directory: Path, layers: int) -> Head:
    cut = Cut.parse(f"{layers}:{layers + 1}", read_config(directory).num_hidden_layers)
    return load_client(directory, cut, torch.float32).head


def every_state(head: Head, prefix: list[int]) -> torch.Tensor:
    """F(v; prefix) for all v, one batch of whole sequences, [V, D]."""
    ids = torch.tensor([[*prefix, v] for v in range(VOCABULARY)])
    with torch.no_grad():
        states: torch.Tensor = head(ids, head.new_cache())[:, -1]
    return states


@pytest.mark.parametrize("prefix", [PREFIX, []])
def test_full_map_is_the_brute_force_one(tiny: Callable[[str], Path], prefix: list[int]) -> None:
    directory = tiny("llama")
    found = margin_map(head_of(directory, 4), prefix, token=7, depths=[1, 3, 4], full=True)
    assert [margin.depth for margin in found] == [1, 3, 4]
    for margin in found:
        states = every_state(head_of(directory, margin.depth), prefix)
        distances = (states - states[7]).norm(dim=-1)
        others = torch.cat([distances[:7], distances[8:]])
        assert margin.norm == pytest.approx(float(states[7].norm()), rel=1e-4)
        assert margin.nearest == pytest.approx(float(others.min()), rel=1e-3)
        torch.testing.assert_close(margin.sampled, others, rtol=1e-3, atol=1e-3)
        assert margin.quantile(0.01) == pytest.approx(float(torch.quantile(others, 0.01)), rel=1e-3)
        assert distances[margin.competitor] == pytest.approx(margin.nearest, rel=1e-3)


def test_a_sample_bounds_the_margin_from_above(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 3)
    whole = margin_map(head, PREFIX, 7, full=True)
    part = margin_map(head, PREFIX, 7, neighbours=10, sample=20)
    assert len(part) == len(whole) == 3
    for some, every in zip(part, whole, strict=True):
        assert some.nearest >= every.nearest - 1e-5
        assert len(some.sampled) in {19, 20}
        assert len(every.sampled) == VOCABULARY - 1


def test_a_twin_token_leaves_no_margin(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 2)
    with torch.no_grad():
        head.embedding()[8] = head.embedding()[7]
    for margin in margin_map(head, PREFIX, 7, neighbours=3, sample=5):
        assert margin.nearest == pytest.approx(0, abs=1e-4)
        assert margin.competitor == 8


def test_batches_do_not_matter(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 3)
    tokens = list(range(50))
    whole = torch.cat(list(candidate_states(head, PREFIX, tokens, [1, 3], batch=50)), 1)
    parts = list(candidate_states(head, PREFIX, tokens, [1, 3], batch=7))
    assert len(parts) == 8
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[1], every_state(head, PREFIX)[:50], rtol=1e-3, atol=1e-3)


def test_nearest_rows() -> None:
    table = torch.tensor([[0.0, 0], [3, 0], [1, 0], [0, 2]])
    assert nearest_rows(table, 0, 2).tolist() == [2, 3]


def test_refusals(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 2)
    with pytest.raises(InputError, match="between 1 and 2"):
        margin_map(head, PREFIX, 7, depths=[3])
    with pytest.raises(InputError, match="competitors to token 7"):
        margin_map(head, PREFIX, 7, sample=0)
