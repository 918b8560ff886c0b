"""Jacobians against finite differences; amplification factors against maps whose singular values are known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.audit.depths import layer_outputs
from cutlayer.audit.jacobian import jacobians
from cutlayer.audit.paf import (
    amplification,
    damped_inverse,
    directional,
    stopped_filter,
    token_amplification,
    weakest_direction,
)
from cutlayer.audit.prefix_attention import in_full_precision
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.models.parts import Head

IDS = [5, 17, 99, 3, 42, 42, 8, 64, 77, 21, 30, 2, 55]


def head_of(directory: Path, layers: int, dtype: torch.dtype = torch.float64) -> Head:
    cut = Cut.parse(f"{layers}:{layers + 1}", read_config(directory).num_hidden_layers)
    return load_client(directory, cut, dtype).head


def differences(head: Head, position: int, step: float = 1e-6) -> torch.Tensor:
    """Central differences of every depth's state over the embedding, by whole forwards without cache, [k, D, D]."""
    base = head.shell.base_model
    with torch.no_grad(), in_full_precision(head):
        embeddings = base.get_input_embeddings()(torch.tensor([IDS]))

        def states(x: torch.Tensor) -> torch.Tensor:
            inputs = embeddings.clone()
            inputs[0, position] = x
            with layer_outputs(head) as outputs:
                base(inputs_embeds=inputs, use_cache=False)
            return torch.stack([output[0, position] for output in outputs])

        at = embeddings[0, position]
        basis = torch.eye(len(at), dtype=at.dtype)
        columns = [(states(at + step * v) - states(at - step * v)) / (2 * step) for v in basis]
    return torch.stack(columns, -1)


@pytest.mark.parametrize(
    ("family", "position"),
    [("llama", 0), ("llama", 7), ("mistral", 11), ("gemma2", 11), ("gpt_neox", 7), ("mixtral", 11)],
)
def test_blocks_agree_with_finite_differences(tiny: Callable[[str], Path], family: str, position: int) -> None:
    """Position 11 lies beyond the sliding window of the families that have one."""
    head = head_of(tiny(family), 4)
    expected = differences(head, position)
    (found,) = jacobians(head, IDS, [position])
    assert found.blocks.shape == expected.shape == (4, 32, 32)
    error = (found.blocks - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))
    assert error.max() < 1e-6


def test_inverses_invert_and_states_are_the_heads(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 5)
    with torch.no_grad():
        hidden = head(torch.tensor([IDS]), head.new_cache())[0]
    for found in jacobians(head, IDS, [3, 12]):
        torch.testing.assert_close(found.states[-1], hidden[found.position], rtol=1e-5, atol=1e-5)
        for block, inverse in zip(found.blocks, found.inverses, strict=True):
            torch.testing.assert_close(inverse @ block, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_head_is_left_as_it_was(tiny: Callable[[str], Path]) -> None:
    head = head_of(tiny("llama"), 3)
    with torch.no_grad():
        before = head(torch.tensor([IDS]), head.new_cache())
        list(jacobians(head, IDS, [4]))
        after = head(torch.tensor([IDS]), head.new_cache())
    assert torch.equal(before, after)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in head.shell.base_model.layers)


def test_jacobians_refuse(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="positions must lie within"):
        list(jacobians(head_of(tiny("llama"), 2), IDS, [len(IDS)]))
    with pytest.raises(InputError, match="float64"):
        list(jacobians(head_of(tiny("llama"), 2, torch.float32), IDS, [1]))


# --- factors ---------------------------------------------------------------------------------------------------------

SINGULAR = torch.logspace(1, -2, 24, dtype=torch.float64)


def known_map() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J, U, V) with J = U diag(SINGULAR) Vᵀ."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=generator)).Q for _ in range(2))
    return left @ torch.diag(SINGULAR) @ right.mT, left, right


def test_factors_of_a_known_map() -> None:
    block, _, _ = known_map()
    state = torch.full((24,), 6.0, dtype=torch.float64)
    found = amplification(block, torch.linalg.inv(block), state, embedding_rms=2.0, steps=(50,), damping=1e-3)
    assert found.rms == pytest.approx(float((1 / SINGULAR**2).mean().sqrt()))
    assert found.largest == pytest.approx(1e2)
    assert found.gradient == pytest.approx(float((SINGULAR**2).mean().sqrt()))
    assert found.damped == pytest.approx(float((SINGULAR / (SINGULAR**2 + 1e-4)).square().mean().sqrt()))
    assert found.scale == pytest.approx(3.0)


def test_factors_are_what_isotropic_noise_does() -> None:
    """Against draws, through solvers that share no formula with the reading: least squares, and gradient descent step by step."""
    block, _, _ = known_map()
    found = amplification(block, torch.linalg.inv(block), SINGULAR, 1.0, steps=(30,), damping=1e-2)
    noise = torch.randn(24, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def grown(moved: torch.Tensor) -> float:
        return float((moved.square().sum(0).mean() / noise.square().sum(0).mean()).sqrt())

    assert grown(torch.linalg.lstsq(block, noise).solution) == pytest.approx(found.rms, rel=0.03)
    assert grown(block.mT @ noise) == pytest.approx(found.gradient, rel=0.03)
    ridge = block.mT @ block + (1e-2 * SINGULAR[0]) ** 2 * torch.eye(24, dtype=torch.float64)
    assert grown(torch.linalg.solve(ridge, block.mT @ noise)) == pytest.approx(found.damped, rel=0.03)
    estimate = torch.zeros_like(noise)
    for _ in range(30):
        estimate -= block.mT @ (block @ estimate - noise) / SINGULAR[0] ** 2
    assert grown(estimate) == pytest.approx(found.stopped[30], rel=0.03)


def test_an_early_stopped_attack_does_not_see_small_directions() -> None:
    """The filter peaks at 1.121 / √(ηK) with 0.638 √(ηK) and vanishes at 0."""
    rate, steps = 0.1, 300
    grid = torch.linspace(0, 3, 300_001, dtype=torch.float64)
    values = stopped_filter(grid, steps, rate)
    assert values[0] == 0
    assert float(grid[values.argmax()]) == pytest.approx(1.121 / math.sqrt(rate * steps), rel=3e-3)
    assert float(values.max()) == pytest.approx(0.638 * math.sqrt(rate * steps), rel=3e-3)


def test_near_identity_layers_cannot_amplify_much() -> None:
    """J = I + A with ‖A‖ = a: 1/(1 + a) ≤ PAF ≤ 1/(1 − a)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(24, 24, dtype=torch.float64, generator=generator)
    block = torch.eye(24, dtype=torch.float64) + 0.5 * noise / torch.linalg.matrix_norm(noise, 2)
    found = amplification(block, torch.linalg.inv(block), SINGULAR, 1.0)
    assert 1 / 1.5 <= found.rms <= found.largest <= 2


def test_deep_products_keep_their_smallest_singular_value() -> None:
    """1e-30 is far below what a decomposition of the product itself resolves; the product of inverses has it."""
    _, _, right = known_map()
    scales = torch.ones(24, dtype=torch.float64)
    scales[-1] = 1e-6
    block, inverse = torch.eye(24, dtype=torch.float64), torch.eye(24, dtype=torch.float64)
    for _ in range(5):  # V diag Vᵀ five times: the last right singular vector shrinks by 1e-30
        layer = right @ torch.diag(scales) @ right.mT
        block, inverse = layer @ block, inverse @ torch.linalg.inv(layer)
    found = amplification(block, inverse, SINGULAR, 1.0)
    assert found.largest == pytest.approx(1e30, rel=1e-6)
    assert torch.linalg.svdvals(block)[-1] > 1e-20
    assert abs(float(weakest_direction(inverse) @ right[:, -1])) == pytest.approx(1, abs=1e-6)


def test_weakest_direction_is_the_most_amplified_one() -> None:
    block, left, _ = known_map()
    inverse = torch.linalg.inv(block)
    weakest = weakest_direction(inverse)
    assert abs(float(weakest @ left[:, -1])) == pytest.approx(1)
    torch.testing.assert_close(directional(inverse, left.mT), 1 / SINGULAR)
    assert directional(inverse, weakest[None]) == pytest.approx(1e2)
    assert directional(damped_inverse(block, damping=1e-1), weakest[None]) == pytest.approx(1e-2 / (1e-4 + 1), rel=1e-6)


def test_token_amplification_says_when_a_token_flips() -> None:
    """In a linear map the nearest neighbour of ê changes exactly where TAF_c exceeds 1, and the search's where TAF_s does."""
    generator = torch.Generator().manual_seed(0)
    block, _, _ = known_map()
    table = torch.randn(200, 24, dtype=torch.float64, generator=generator)
    truth, others = table[0], table[1:]
    noise = torch.randn(400, 24, dtype=torch.float64, generator=generator)
    noise = noise * torch.linspace(0.001, 4, 400, dtype=torch.float64)[:, None]
    moved = noise @ torch.linalg.inv(block).mT
    returned = torch.cdist(truth + moved, table).argmin(1) != 0
    continuous = token_amplification(moved, others - truth) > 1
    assert torch.equal(returned, continuous)
    searched = torch.cdist(truth @ block.mT + noise, table @ block.mT).argmin(1) != 0
    discrete = token_amplification(noise, (others - truth) @ block.mT) > 1
    assert torch.equal(searched, discrete)
    assert 0 < int(discrete.sum()) < int(continuous.sum()) < 400, "the search withstands more than the converged attack"


def test_factors_refuse_what_says_nothing() -> None:
    zero = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="does not depend on its token"):
        amplification(zero, zero, SINGULAR, 1.0)
    with pytest.raises(InputError, match="differs from the true token"):
        token_amplification(torch.ones(1, 3), torch.zeros(2, 3))
    singular = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    found = amplification(singular, torch.full((2, 2), torch.inf, dtype=torch.float64), SINGULAR, 1.0)
    assert math.isinf(found.rms)
    assert math.isinf(found.largest)
