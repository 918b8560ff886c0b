"""The algebra of keys: readers undo writers, isometric keys keep lengths, and draws are what they claim to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.obfuscation.algorithm1 import Algorithm1
from cutlayer.obfuscation.frequency_pairs import windowed_permutation
from cutlayer.obfuscation.hidden_keys import HiddenKey, Isometric, Monomial
from cutlayer.obfuscation.stream import Stream
from cutlayer.types import Secret

SEED = Secret(bytes(range(32)))
D, WIDE = 24, 40
EYE = torch.eye(D, dtype=torch.float64)
KEYS: dict[str, HiddenKey] = {
    "isometric": Isometric(SEED, D, D),
    "isometric, wider": Isometric(SEED, D, WIDE),
    "monomial": Monomial.draw(SEED, D),
    "algorithm 1": Algorithm1(SEED, D, WIDE, 0.3, per_writer=False),
    "algorithm 1, per writer": Algorithm1(SEED, D, WIDE, 0.3, per_writer=True),
}


def matrices(key: HiddenKey, writer: str, reader: str) -> tuple[torch.Tensor, torch.Tensor]:
    """P̂ [d, D] and Q̂ᵀ [d, D]."""
    return key.writer(writer, torch.float64)(EYE), key.reader(reader, torch.float64)(EYE)


@pytest.mark.parametrize("name", KEYS)
def test_every_reader_undoes_every_writer(name: str) -> None:
    for writer in ("embedding", "L0/o", "L3/down"):
        for reader in ("head", "L0/q", "L3/gate"):
            p, q = matrices(KEYS[name], writer, reader)
            assert (p @ q.T - EYE).abs().max() < 1e-10


@pytest.mark.parametrize("name", [name for name in KEYS if "algorithm" not in name])
def test_exact_keys_keep_lengths(name: str) -> None:
    p, _ = matrices(KEYS[name], "embedding", "head")
    scale = p.shape[1] / D
    assert (p @ p.T - scale * EYE).abs().max() < 1e-10
    assert KEYS[name].kappa == pytest.approx(math.sqrt(scale) * math.sqrt(D / p.shape[1]))


def test_keys_that_should_differ_do() -> None:
    shared, own = KEYS["algorithm 1"], KEYS["algorithm 1, per writer"]
    assert torch.equal(matrices(shared, "embedding", "head")[0], matrices(shared, "L0/o", "head")[0])
    assert (matrices(own, "embedding", "head")[0] - matrices(own, "L0/o", "head")[0]).abs().max() > 0.01
    for name in ("isometric, wider", "algorithm 1"):
        assert (
            matrices(KEYS[name], "embedding", "head")[1] - matrices(KEYS[name], "embedding", "L0/q")[1]
        ).norm() > 0.1


def test_kappa_of_algorithm_1_is_that_of_random_directions() -> None:
    key = KEYS["algorithm 1"]
    rows = Stream(SEED, "directions").normal(4000, D)
    wide = key.writer("embedding", torch.float64)(rows)
    measured = math.sqrt(float(wide.square().mean() / rows.square().mean()))
    assert key.kappa == pytest.approx(measured, rel=0.02)


def test_algorithm_1_is_well_conditioned() -> None:
    p, q = matrices(Algorithm1(SEED, D, WIDE, 0.3, per_writer=False), "embedding", "head")
    for matrix in (p, q):
        values = torch.linalg.svdvals(matrix)
        assert values[0] / values[-1] < 20


@given(label=st.text(max_size=20), count=st.integers(1, 300), cut=st.integers(0, 300))
def test_stream_does_not_depend_on_how_it_is_consumed(label: str, count: int, cut: int) -> None:
    whole = Stream(SEED, label).words(count).tolist()
    parts = Stream(SEED, label)
    cut = min(cut, count)
    assert parts.words(cut).tolist() + parts.words(count - cut).tolist() == whole


@given(count=st.integers(1, 200))
def test_permutations_and_their_seeds(count: int) -> None:
    order = Stream(SEED, "perm").permutation(count)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, Stream(SEED, "perm").permutation(count))
    if count > 20:
        assert not torch.equal(order, Stream(Secret(bytes(32)), "perm").permutation(count))
        assert not torch.equal(order, Stream(SEED, "other").permutation(count))


def test_permutations_are_uniform() -> None:
    """All 24 orders of four things, in 12,000 draws: χ² with 23 degrees of freedom stays below its 99.99 % point."""
    stream = Stream(SEED, "uniform")
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(12_000):
        order = tuple(stream.permutation(4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 58.6


def test_normal_values_are_normal() -> None:
    values = Stream(SEED, "normal").normal(100_000)
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float((values.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.005)


@given(beta=st.integers(1, 8), gamma=st.floats(0, 1e4))
def test_windows_move_no_pair_further_than_their_width(beta: int, gamma: float) -> None:
    zeta = 1e4 ** (-torch.arange(32, dtype=torch.float64) / 32)
    order = windowed_permutation(Stream(SEED, "windows"), zeta, beta, gamma)
    assert sorted(order.tolist()) == list(range(32))
    assert int((order - torch.arange(32)).abs().max()) < beta


def test_strong_gamma_keeps_fast_pairs_and_moves_slow_ones() -> None:
    zeta = 1e4 ** (-torch.arange(32, dtype=torch.float64) / 32)
    orders = [windowed_permutation(Stream(SEED, f"draw {i}"), zeta, 8, 1e3) for i in range(200)]
    moved = torch.stack([order != torch.arange(32) for order in orders]).double().mean(0)
    assert moved[:8].max() == 0
    assert moved[-8:].min() > 0.3
