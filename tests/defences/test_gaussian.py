"""The Gaussian mechanism: calibration against an oracle, clipping, and noise that gives nothing away by repetition."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from cutlayer.defences.defence import build_defence
from cutlayer.defences.gaussian import GaussianNoise, analytic_sigma
from cutlayer.defences.keyed_noise import KeyedNoise
from cutlayer.defences.positions import Positions
from cutlayer.errors import InputError, UnknownNameError
from cutlayer.types import Secret

SECRET = Secret(b"s" * 32)


def at(keys: list[bytes]) -> Positions:
    return Positions(keys, lambda row: [0] * (row + 1))


def prefixes(tokens: list[int]) -> list[bytes]:
    return [hashlib.sha256(repr(tokens[: i + 1]).encode()).digest() for i in range(len(tokens))]


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (8.0, 1e-6), (50.0, 1e-9), (0.5, 0.1)])
def test_calibration_meets_delta_exactly(epsilon: float, delta: float) -> None:
    """scipy evaluates Balle & Wang's condition at our σ: δ is met, and not by much."""
    sensitivity = 2.5
    sigma = analytic_sigma(epsilon, delta, sensitivity)

    def spent(s: float) -> float:
        a, b = sensitivity / (2 * s), epsilon * s / sensitivity
        return float(stats.norm.cdf(a - b) - np.exp(epsilon + stats.norm.logcdf(-a - b)))

    assert spent(sigma) <= delta * (1 + 1e-6)
    assert spent(sigma * 0.999) > delta


def test_calibration_agrees_with_dp_accounting() -> None:
    """An independent accountant finds the same ε for our σ."""
    sigma = analytic_sigma(2.0, 1e-6, 1.0)
    loss = privacy_loss_distribution.from_gaussian_mechanism(sigma, sensitivity=1.0)
    assert loss.get_epsilon_for_delta(1e-6) == pytest.approx(2.0, rel=2e-3)


def test_noise_is_standard_normal_and_independent_across_positions() -> None:
    noise = KeyedNoise(SECRET, "test").normal(prefixes(list(range(64))), 512)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(64)).max() < 6 / np.sqrt(512)


def test_the_same_prefix_repeats_its_noise_in_any_chunking() -> None:
    keys = prefixes([5, 6, 7, 8])
    source = KeyedNoise(SECRET, "test")
    whole = source.normal(keys, 16)
    assert torch.equal(whole, torch.cat([source.normal([key], 16) for key in keys]))
    assert not torch.equal(whole, KeyedNoise(Secret(b"t" * 32), "test").normal(keys, 16))
    assert not torch.equal(whole, KeyedNoise(SECRET, "other").normal(keys, 16))


def test_averaging_repeats_gains_nothing_while_fresh_noise_averages_away() -> None:
    hidden = torch.ones(1, 256, dtype=torch.float64)
    key = prefixes([1])
    defence = build_defence("gaussian:sigma=1", SECRET)
    ours = torch.stack([defence.release(hidden, at(key)) for _ in range(100)]).mean(0)
    fresh = torch.stack(
        [
            build_defence("gaussian:sigma=1", Secret(bytes([i]) * 32)).release(
                hidden, at(key)
            )  # a new secret each time
            for i in range(100)
        ]
    ).mean(0)
    assert (ours - hidden).std() == pytest.approx(1.0, abs=0.2)
    assert (fresh - hidden).std() < 0.15


def test_two_tokens_at_one_position_do_not_share_noise() -> None:
    """The subtraction attack: works if noise is keyed by position, fails as it is keyed here."""
    source = KeyedNoise(SECRET, "gaussian")
    defence = GaussianNoise(source, sigma=10.0, clip=None, spec="")
    first, second = torch.zeros(1, 64, dtype=torch.float64), torch.full((1, 64), 0.5, dtype=torch.float64)
    by_position = [b"position 3"]
    stolen = defence.release(second, at(by_position)) - defence.release(first, at(by_position))
    assert torch.allclose(stolen, second - first)
    ours = defence.release(second, at(prefixes([1, 2, 3])[-1:])) - defence.release(first, at(prefixes([1, 2, 4])[-1:]))
    assert (ours - (second - first)).std() > 10


def test_clip_bounds_the_norm_and_leaves_short_rows_alone() -> None:
    defence = build_defence("gaussian:sigma=0.000001,clip=3", SECRET)
    rows = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    released = defence.release(rows, at(prefixes([1, 2, 3])))
    assert torch.allclose(released, torch.tensor([[1.8, 2.4], [0.3, 0.4], [0.0, 0.0]]), atol=1e-4)
    assert released.dtype is rows.dtype


@pytest.mark.parametrize(
    "spec",
    [
        "gaussian", "gaussian:sigma=0", "gaussian:sigma=-1", "gaussian:sigma=nan", "gaussian:sigma=inf", "gaussian:sigma",
        "gaussian:epsilon=1", "gaussian:epsilon=1,delta=1e-5", "gaussian:sigma=1,epsilon=1,delta=0.1,clip=1",
        "gaussian:epsilon=1,delta=2,clip=1", "gaussian:sigma=1,sigma=2", "gaussian:scale=1", "none:sigma=1",
    ],
)  # fmt: skip
def test_wrong_options_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        build_defence(spec, SECRET)


def test_unknown_defence_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="gaussian, laplace"):
        build_defence("magic", SECRET)


def test_none_releases_the_input() -> None:
    hidden = torch.randn(2, 4)
    assert torch.equal(build_defence("none", SECRET).release(hidden, at(prefixes([1, 2]))), hidden)
