"""In which direction to perturb one position: the readings of PriPert that look at the prompt itself.

Each is a function of the tokens up to the position and of D keyed normal draws; nothing else enters, so the same prefix in
the same session gives the same direction however the prompt is sent. Directions need not have unit length.

Footgun: each costs tens to hundreds of one-token passes through the client's layers, for every position.

Notation: T tokens, D hidden size, J = ∂h_t / ∂e_t at one position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch.nn.functional import normalize

from cutlayer.defences.pripert_local import Jacobian, LocalMap, differentiable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.models.parts import Head

DAMPING: Final = 1e-3
"""√λ as a share of the largest singular value of J."""
_SPECTRUM_STEPS: Final = 5
"""Power steps that estimate the largest singular value: within a few per cent, and only its order matters."""
_ASCENT: Final = 0.5
"""Length of one ascent step, as a share of the perturbation's length."""


class Reading(Protocol):
    """A way to choose directions."""

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """The direction at the last of `ids`, [D].

        Args:
            ids: the tokens up to the position.
            draws: [D] keyed standard normal values of this position.
        """
        ...


class Static:
    """A random direction of a fixed subspace.

    Args:
        directions: orthonormal, [D, r].
    """

    def __init__(self, directions: torch.Tensor) -> None:
        self._directions = directions

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """See `Reading`."""
        basis = self._directions.to(draws)  # [D, r]
        return basis @ draws[: basis.shape[1]]


class Power:
    """Power iteration on (J Jᵀ + λI)⁻¹: where a converged inverter errs most.

    Args:
        head: the client's first layers.
        steps: power steps.
        solves: conjugate-gradient iterations in each.
    """

    def __init__(self, head: Head, steps: int, solves: int) -> None:
        self._head = head
        self._steps = steps
        self._solves = solves

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """See `Reading`."""
        with differentiable():
            local, direction = _start(self._head, ids, draws)
            gram = Jacobian(local).gram
            damping = DAMPING**2 * _largest(gram, direction)
            for _ in range(self._steps):
                solved = _conjugate_gradient(lambda v: gram(v) + damping * v, direction, self._solves)
                direction = normalize(solved, dim=0)
            return direction


class Backprop:
    """Power iteration on J Jᵀ: where δ injects the largest spurious gradient Jᵀδ; its sign is that of the keyed start.

    Args:
        head: the client's first layers.
        steps: power steps.
    """

    def __init__(self, head: Head, steps: int) -> None:
        self._head = head
        self._steps = steps

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """See `Reading`."""
        with differentiable():
            local, direction = _start(self._head, ids, draws)
            gram = Jacobian(local).gram
            for _ in range(self._steps):
                direction = normalize(gram(direction), dim=0)
            return direction


class Gradient:
    """Projected gradient ascent on how far a matching attack is driven from the truth within a few of its own steps.

    Args:
        head: the client's first layers.
        beta: length of the perturbation over that of the hidden state.
        steps: ascent steps.
        unroll: gradient steps of the attack that are differentiated through.
    """

    def __init__(self, head: Head, beta: float, steps: int, unroll: int) -> None:
        self._head = head
        self._beta = beta
        self._steps = steps
        self._unroll = unroll

    def __call__(self, ids: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
        """See `Reading`."""
        with differentiable():
            local, direction = _start(self._head, ids, draws)
            hidden = local(local.embedding).detach()  # [1, D]
            radius = self._beta * hidden.norm()
            rate = attack_rate(local, direction)
            for _ in range(self._steps):
                delta = (radius * direction).to(hidden).requires_grad_()
                reached = unrolled(local, hidden + delta, self._unroll, rate)  # [1, D]
                error = (reached - local.embedding).square().sum()
                (slope,) = torch.autograd.grad(error, delta)
                direction = normalize(direction + _ASCENT * normalize(slope.float(), dim=0), dim=0)
            return direction


def unrolled(local: LocalMap, target: torch.Tensor, steps: int, rate: torch.Tensor) -> torch.Tensor:
    """Where gradient descent on ½‖F(e) − target‖² arrives from the true embedding, differentiable in the target.

    Args:
        local: of one sequence.
        target: what the attack believes the hidden state is, [1, D].
        steps: gradient steps.
        rate: their size, see `attack_rate`.

    Returns:
        [1, D].
    """
    at = local.embedding.clone().requires_grad_()
    for _ in range(steps):
        loss = 0.5 * (local(at) - target).square().sum()
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        at = at - rate * slope
    return at


def attack_rate(local: LocalMap, start: torch.Tensor) -> torch.Tensor:
    """The largest safe step of the matching attack, 1 / σ_max², scalar.

    Args:
        local: of one sequence.
        start: unit vector [D] to start the estimate from.
    """
    return 1 / _largest(Jacobian(local).gram, start)


def _start(head: Head, ids: Sequence[int], draws: torch.Tensor) -> tuple[LocalMap, torch.Tensor]:
    local = LocalMap(head, torch.tensor([list(ids)]))
    return local, normalize(draws.float().to(local.embedding.device), dim=0)


def _largest(gram: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """Largest eigenvalue of J Jᵀ, a scalar, by power iteration."""
    vector = start
    for _ in range(_SPECTRUM_STEPS):
        vector = normalize(gram(vector), dim=0)
    largest: torch.Tensor = gram(vector).norm()
    return largest


def _conjugate_gradient(
    matrix: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, iterations: int
) -> torch.Tensor:
    """x with matrix · x ≈ right, [D]."""
    solution = torch.zeros_like(right)
    residual = step = right
    squared = residual.dot(residual)
    for _ in range(iterations):
        image = matrix(step)
        length = squared / step.dot(image)
        solution = solution + length * step
        residual = residual - length * image
        previous, squared = squared, residual.dot(residual)
        if squared <= 1e-12 * right.dot(right):
            break
        step = residual + squared / previous * step
    return solution
