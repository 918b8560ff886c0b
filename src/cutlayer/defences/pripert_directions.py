"""The fixed subspace of static PriPert: how it is calibrated, and the file that holds it.

Directions maximise the error of a converged inverter per unit of harm: the top generalised eigenvectors of
A = (M + λI)⁻¹ against B = G + γI, with M = E[J_tt J_ttᵀ] the response of hidden states to their own embeddings and G the
sensitivity of the model's predictions to the hidden state. A client holds no middle layers and takes G = 0.

A file is safetensors with the one tensor ``directions`` [D, r], orthonormal columns.

Notation: S sequences, T positions, D hidden size, r rank, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cutlayer.defences.pripert_channel import sparsified
from cutlayer.defences.pripert_local import Jacobian, LocalMap, differentiable
from cutlayer.defences.pripert_readings import DAMPING
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cutlayer.models.parts import Head

_SEQUENCES: Final = 8
_LENGTH: Final = 48
_PROBES_PER_DIMENSION: Final = 8
"""Random probes behind M for each of its D dimensions: its smallest eigenvalues are then right within a factor of 2."""
_ORTHONORMAL: Final = 1e-4

_responses: WeakKeyDictionary[Head, torch.Tensor] = WeakKeyDictionary()
_calibrated: WeakKeyDictionary[Head, dict[int, torch.Tensor]] = WeakKeyDictionary()


class Inside(NamedTuple):
    """How undefended hidden states lie within a subspace."""

    centre: torch.Tensor
    """Mean coordinates, [r]."""
    spread: float
    """Mean squared distance from it."""


def head_directions(head: Head, rank: int) -> torch.Tensor:
    """Directions calibrated from the client's layers alone on the public sequence, [D, r]; remembered for each head.

    About eight products with J per hidden dimension: half a minute for four layers of SmolLM2-135M on one core.
    """
    by_rank = _calibrated.setdefault(head, {})
    if rank not in by_rank:
        if head not in _responses:
            ids = public_ids(len(head.embedding()))
            _responses[head] = response(head, ids, tokens=16 * _SEQUENCES)
        by_rank[rank] = principal(_responses[head], None, rank)
    return by_rank[rank]


def public_ids(vocabulary: int) -> torch.Tensor:
    """Pseudo-random tokens that everybody can repeat, [8, 48]."""
    return torch.randint(vocabulary, (_SEQUENCES, _LENGTH), generator=torch.Generator().manual_seed(0))


def response(head: Head, ids: torch.Tensor, tokens: int, seed: int = 0) -> torch.Tensor:
    """M = E[J_tt J_ttᵀ] by random probes, [D, D] float64. First positions are left out: their states are sinks.

    Args:
        head: the client's first layers.
        ids: [S, T], T ≥ 2.
        tokens: positions to average over, at least; spread evenly over each sequence.
        seed: of the probes.
    """
    width = head.embedding().shape[1]
    generator = torch.Generator().manual_seed(seed)
    positions = torch.linspace(1, ids.shape[1] - 1, min(ids.shape[1] - 1, math.ceil(tokens / len(ids)))).long().tolist()
    probes = math.ceil(_PROBES_PER_DIMENSION * width / (len(ids) * len(positions)))
    total = torch.zeros(width, width, dtype=torch.float64)
    for local in _maps(head, ids, positions):
        tangents = torch.randn(len(local.embedding) * probes, width, generator=generator)
        with differentiable():
            pushed = Jacobian(local, probes).push(tangents).double().cpu()  # [B, D]
        total += pushed.T @ pushed
    return total / (len(ids) * len(positions) * probes)


def principal(
    response: torch.Tensor, utility: torch.Tensor | None, rank: int, damping: float = DAMPING, floor: float = 0.1
) -> torch.Tensor:
    """Top generalised eigenvectors of (M + λI)⁻¹ against G + γI, orthonormalised, [D, r] float32.

    Args:
        response: M, [D, D].
        utility: G, [D, D], or None for the identity in place of G + γI.
        rank: r.
        damping: √λ over the square root of M's largest eigenvalue.
        floor: γ over the mean eigenvalue of G.

    Raises:
        InputError: the rank does not leave a dimension free.
    """
    width = len(response)
    if not 1 <= rank < width:
        raise InputError(f"pripert: rank {rank} of {width} hidden dimensions; it must be from 1 to {width - 1}")
    identity = torch.eye(width, dtype=torch.float64)
    damped = response.double() + damping**2 * torch.linalg.eigvalsh(response.double())[-1] * identity
    harm = identity if utility is None else utility.double() + floor * utility.double().trace() / width * identity
    # with B = LLᵀ: the largest eigenvalues of L⁻¹ A L⁻ᵀ are the smallest of its inverse Lᵀ (M + λI) L
    lower = torch.linalg.cholesky(harm)
    vectors = torch.linalg.eigh(lower.T @ damped @ lower).eigenvectors[:, :rank]  # ascending
    solution = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    orthonormal: torch.Tensor = torch.linalg.qr(solution).Q
    return orthonormal.float()


def inside(head: Head | None, directions: torch.Tensor, keep: float | None) -> Inside:
    """Where hidden states of the public sequence lie in the subspace. Without a head nothing is known: all at 0.

    Args:
        head: the attacker's copy of the client's first layers.
        directions: [D, r].
        keep: see `sparsified`.
    """
    if head is None:
        return Inside(directions.new_zeros(directions.shape[1]), 0.0)
    ids = public_ids(len(head.embedding())).to(head.embedding().device)
    with torch.inference_mode():
        hidden = head(ids, head.new_cache())[:, 1:].float().cpu()  # [S, T, D]
    coordinates = (sparsified(hidden, keep) @ directions).flatten(0, 1)  # [S · T, r]
    centre = coordinates.mean(0)
    return Inside(centre, float((coordinates - centre).square().sum(-1).mean()))


def read_directions(path: Path, width: int | None, rank: int | None) -> torch.Tensor:
    """Read and check a file of directions.

    Args:
        path: file.
        width: hidden size they must have, or None if it is not known.
        rank: use only the first so many, or None for all.

    Returns:
        [D, r] float32.

    Raises:
        InputError: unreadable, of another shape, not finite or not orthonormal.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"pripert: directions {path} cannot be read: {error}") from error
    found = tensors.get("directions")
    if found is None or found.dim() != 2 or not found.is_floating_point():
        raise InputError(f"pripert: {path} holds no floating-point matrix called 'directions'")
    rows, columns = found.shape
    if not 1 <= columns < rows or (width is not None and rows != width):
        expected = "hidden size" if width is None else width
        raise InputError(f"pripert: directions of {path} are {rows} × {columns}; expected {expected} × fewer columns")
    if rank is not None and rank > columns:
        raise InputError(f"pripert: rank {rank}, but {path} holds {columns} directions")
    kept: torch.Tensor = found[:, :rank].float()
    if not kept.isfinite().all() or not torch.allclose(kept.T @ kept, torch.eye(kept.shape[1]), atol=_ORTHONORMAL):
        raise InputError(f"pripert: directions of {path} are not finite or not orthonormal; calibrate them again")
    return kept


def write_directions(path: Path, directions: torch.Tensor) -> None:
    """Write [D, r] directions for ``pripert:directions=FILE``."""
    save_file({"directions": directions.contiguous()}, path)


def _maps(head: Head, ids: torch.Tensor, positions: list[int]) -> Iterator[LocalMap]:
    for batch in torch.split(ids, _SEQUENCES):
        for position in positions:
            yield LocalMap(head, batch[:, : position + 1])
