"""Information estimators against channels whose information is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.audit.information.fano import accuracy_from_information, information_from_accuracy
from cutlayer.audit.information.gaussian_bound import (
    certified_accuracy,
    covariance_spectrum,
    effective_dimension,
    gaussian_information,
    metric_information,
)
from cutlayer.audit.information.matrix_renyi import RenyiIndex, renyi_index
from cutlayer.audit.information.v_information import Training, v_information
from cutlayer.errors import InputError

# --- V-information ---------------------------------------------------------------------------------------------------


def noisy_symbols(
    tokens: int, flip: float, size: int = 16, symbols: int = 4
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Uniform symbols, each shown as one of `symbols` far-apart points; with probability `flip` another symbol's point."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(symbols, (tokens,), generator=generator)
    others = (ids + torch.randint(1, symbols, (tokens,), generator=generator)) % symbols
    shown = torch.where(torch.rand(tokens, generator=generator) < flip, others, ids)
    points = 3 * torch.randn(symbols, size, generator=generator)
    states = points[shown] + 0.1 * torch.randn(tokens, size, generator=generator)
    return states, ids, [i // 50 for i in range(tokens)]


@pytest.mark.parametrize("family", ["linear", "mlp"])
def test_v_information_of_a_symmetric_channel_is_its_capacity(family: str) -> None:
    flip = 0.1
    states, ids, documents = noisy_symbols(4000, flip)
    found = v_information(states, ids, documents, family=family, training=Training(hidden=32))  # type: ignore[arg-type]
    capacity = 2 + (1 - flip) * math.log2(1 - flip) + flip * math.log2(flip / 3)
    assert found.information.value == pytest.approx(capacity, abs=0.08)
    assert found.information.low < capacity < found.information.high + 0.08
    assert found.entropy.value == pytest.approx(2, abs=0.01)
    assert found.shuffled.value <= 0.05
    assert found.information.n == 80


def test_v_information_of_unrelated_states_is_nothing() -> None:
    _, ids, documents = noisy_symbols(2000, 0)
    states = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1))
    found = v_information(states, ids, documents)
    assert abs(found.information.value) <= 0.05
    assert found.shuffled.value <= 0.05


def test_a_linear_reader_cannot_use_what_a_hidden_layer_can() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (2000, 2), generator=generator)
    ids = signs.sum(-1) % 2  # exclusive or: no linear reader sees it
    states = 2.0 * signs - 1 + 0.1 * torch.randn(2000, 2, generator=generator)
    documents = [i // 50 for i in range(2000)]
    linear = v_information(states, ids, documents)
    bent = v_information(states, ids, documents, family="mlp", training=Training(hidden=32, rate=1e-2))
    assert linear.information.value < 0.05
    assert bent.information.value > 0.9


def test_rare_types_share_one_class() -> None:
    """With one type of its own, what is left to know is whether a token is that type."""
    states, ids, documents = noisy_symbols(3000, 0)
    found = v_information(states, ids, documents, types=1, training=Training(rate=1e-2))
    share = max((ids == symbol).float().mean().item() for symbol in range(4))
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert found.entropy.value == pytest.approx(entropy, abs=0.02)
    assert found.information.value == pytest.approx(entropy, abs=0.05)


def test_attention_sinks_do_not_blind_the_reader() -> None:
    """One row in fifty is ten thousand times as long; all others are read as without it."""
    states, ids, documents = noisy_symbols(2000, 0)
    states[::50] *= 1e4
    assert v_information(states, ids, documents, training=Training(rate=1e-2)).information.value > 1.9


def test_v_information_refuses_too_few_documents() -> None:
    states, ids, _ = noisy_symbols(100, 0)
    with pytest.raises(InputError, match="2 documents in 5 folds"):
        v_information(states, ids, [i // 50 for i in range(100)])
    with pytest.raises(InputError, match="no token occurs twice"):
        v_information(states, torch.arange(100), list(range(100)))


# --- bounds under noise ----------------------------------------------------------------------------------------------


def test_gaussian_bound_is_the_capacity_of_a_gaussian_channel() -> None:
    """For Gaussian states the bound holds with equality: h(Z) − h(noise) by log-determinants."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    covariance = mix @ mix.mT
    sigma = 0.7
    noise = sigma**2 * torch.eye(6, dtype=torch.float64)
    exact = float((torch.logdet(covariance + noise) - torch.logdet(noise)) / 2 / math.log(2))
    assert gaussian_information(torch.linalg.eigvalsh(covariance), sigma) == pytest.approx(exact)
    assert gaussian_information([3.0, 0.0], sigma=1.0) == pytest.approx(1.0)
    assert gaussian_information([3.0], sigma=2.0, repeats=4) == pytest.approx(1.0), "four releases halve the noise"


def test_gaussian_bound_covers_a_two_point_message() -> None:
    """The message ±1 in unit noise: its information by quadrature, strictly below the bound."""
    z = np.linspace(-12, 12, 200_001)
    mixture = (np.exp(-((z - 1) ** 2) / 2) + np.exp(-((z + 1) ** 2) / 2)) / 2 / math.sqrt(2 * math.pi)
    information = np.trapezoid(-mixture * np.log2(mixture), z) - 0.5 * math.log2(2 * math.pi * math.e)
    assert 0.4 < information < gaussian_information([1.0], 1.0)


def test_metric_bound_matches_laplace_noise_in_one_dimension() -> None:
    """D = 1 is Laplace noise of scale 1/η with entropy 1 + ln(2/η); Σ = 0 leaves the gap between Gaussian and Laplace."""
    gap = (0.5 * math.log(4 * math.pi * math.e) - 1 - math.log(2)) / math.log(2)
    assert metric_information([0.0], 1.0) == pytest.approx(gap)
    assert metric_information([0.0], 30.0) == pytest.approx(gap), "units cancel"


def test_metric_bound_covers_a_two_point_message() -> None:
    z = np.linspace(-40, 40, 400_001)
    mixture = (np.exp(-np.abs(z - 1)) + np.exp(-np.abs(z + 1))) / 4
    information = np.trapezoid(-mixture * np.log2(mixture), z) - (1 + math.log(2)) / math.log(2)
    assert 0.2 < information < metric_information([1.0], 1.0)


def test_spectrum_is_that_of_the_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 5, generator=generator) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]) + 100
    expected = np.linalg.eigvalsh(np.cov(states.double().numpy().T))[::-1]
    np.testing.assert_allclose(covariance_spectrum(states).numpy(), expected, rtol=1e-9)
    assert effective_dimension(covariance_spectrum(states), sigma=2.5) == 3


def test_certificate() -> None:
    assert certified_accuracy(4.0, 1024) == pytest.approx(0.5)
    assert certified_accuracy(1e6, 1024) == 1.0
    for bad in (
        lambda: certified_accuracy(1, 1),
        lambda: gaussian_information([1.0], 0),
        lambda: metric_information([1.0], 0),
    ):
        with pytest.raises(InputError):
            bad()


# --- Fano ------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 50_000), st.floats(0, 1))
def test_fano_round_trip(candidates: int, share: float) -> None:
    accuracy = 1 / candidates + share * (1 - 1 / candidates)
    entropy = math.log2(candidates)
    bits = information_from_accuracy(accuracy, entropy, candidates)
    # The inequality is flat where the information vanishes: compare in bits, which is what it states.
    back = accuracy_from_information(bits, entropy, candidates)
    assert information_from_accuracy(back, entropy, candidates) == pytest.approx(bits, abs=1e-9)
    if bits > 1e-3:
        assert back == pytest.approx(accuracy, abs=1e-6)


@given(st.integers(2, 50_000), st.floats(0, 1), st.floats(0, 1))
def test_fano_never_exceeds_the_certificate(candidates: int, share: float, part: float) -> None:
    """The certificate replaces h_b by 1, so it allows more."""
    entropy = math.log2(candidates)
    bits = share * entropy
    exact = accuracy_from_information(bits, entropy, candidates)
    assert exact <= certified_accuracy(bits, candidates) + 1e-9
    assert accuracy_from_information(part * bits, entropy, candidates) <= exact + 1e-9, (
        "less information, no more accuracy"
    )


def test_fano_holds_with_equality_for_the_symmetric_channel() -> None:
    symbols, flip = 8, 0.2
    capacity = math.log2(symbols) + (1 - flip) * math.log2(1 - flip) + flip * math.log2(flip / (symbols - 1))
    assert information_from_accuracy(1 - flip, math.log2(symbols), symbols) == pytest.approx(capacity)
    assert information_from_accuracy(1 / symbols, math.log2(symbols), symbols) == pytest.approx(0, abs=1e-12)


def test_fano_refuses_what_cannot_be() -> None:
    for bad in (
        lambda: information_from_accuracy(1.1, 1, 2),
        lambda: information_from_accuracy(0.5, 5, 2),
        lambda: accuracy_from_information(-1, 1, 2),
        lambda: accuracy_from_information(1, 0, 1),
    ):
        with pytest.raises(InputError):
            bad()


# --- matrix Rényi ----------------------------------------------------------------------------------------------------


def gaussian_pairs(size: int, width: float | None) -> RenyiIndex:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1000, size))
    y = 0.6 * x + 0.8 * generator.standard_normal((1000, size))
    return renyi_index(torch.from_numpy(x), torch.from_numpy(y), width=width)


def test_renyi_reads_the_kernel_in_high_dimension() -> None:
    """185 bits of true information, and the index cannot tell the pairs from shuffled ones."""
    found = gaussian_pairs(576, None)
    assert found.value == pytest.approx(2.08, abs=0.02)
    assert found.shuffled == pytest.approx(2.04, abs=0.02)
    assert found.ceiling == pytest.approx(math.log2(1000))


def test_renyi_width_decides_in_high_dimension() -> None:
    narrow = gaussian_pairs(576, 20)
    assert narrow.value == pytest.approx(6.66, abs=0.03)
    assert abs(narrow.value - narrow.shuffled) < 0.04


def test_renyi_tells_pairs_from_shuffled_ones_in_one_dimension() -> None:
    found = gaussian_pairs(1, None)
    assert found.value == pytest.approx(0.25, abs=0.02)
    assert found.shuffled < 0.03


def test_renyi_of_identical_sides_is_the_entropy_and_projection_keeps_the_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(8, (200,), generator=generator)
    points = torch.eye(8)[symbols] * 100
    same = renyi_index(points, points, width=1.0)
    assert same.value == pytest.approx(3, abs=0.05), "eight far-apart points: three bits"
    wide = torch.cat([points, torch.randn(200, 300, generator=generator)], 1)
    assert renyi_index(wide, points, components=7, width=0.5).value > 2.8
    with pytest.raises(InputError, match="at least two pairs"):
        renyi_index(points[:1], points[:1])
