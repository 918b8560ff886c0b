"""Exact Jacobian of a hidden state with respect to its own token's embedding, and its inverse, at every depth.

    for found in jacobians(head, ids, positions=[7, 12]):
        found.blocks[3]               # J_tt of the first four layers, [D, D]

Attention is causal, so what stands before position t does not depend on its embedding: keys and values of the prefix are
constants, and J_tt of k layers is the product of k single-layer Jacobians. Each is found by D forward-mode tangents.

Footgun: the composed map is ill-conditioned beyond float64. On SmolLM2-135M σ_min/σ_max is 1e-6 after one layer, 1e-8
after four and 1e-13 after eight, so a decomposition of the block itself returns rounding noise for its small singular
values. `inverses` is the product of the single layers' inverses, each conditioned 1e5 or better: its large singular values
are the reciprocals of the small ones (a relative change of 1e-12 in every layer moved its norm by 1e-8 at depth 29). The
head must be in float64; in float32 the smallest value was thousands of times too large at depth eight.

Notation: T tokens, t position, D hidden size, k layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cutlayer.audit.prefix_attention import after_prefix, in_full_precision
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cutlayer.models.cache import RollbackCache
    from cutlayer.models.parts import Head


class Jacobians(NamedTuple):
    """One position at every depth; row i of each is after i + 1 layers."""

    position: int
    states: torch.Tensor
    """[k, D]: hidden states."""
    blocks: torch.Tensor
    """[k, D, D]: J_tt = ∂ state / ∂ embedding, rows are outputs."""
    inverses: torch.Tensor
    """[k, D, D]: J_tt⁻¹, infinite where a layer is singular."""


def jacobians(head: Head, ids: Sequence[int], positions: Sequence[int]) -> Iterator[Jacobians]:
    """Diagonal blocks J_tt of the head's composed maps.

    Args:
        head: the client's layers, in float64.
        ids: the prompt's T tokens.
        positions: which ones to differentiate at.

    Raises:
        InputError: the head has no layers or is not in float64, or a position lies outside the prompt.
    """
    outside = [position for position in positions if not 0 <= position < len(ids)]
    if outside or not head.layers:
        raise InputError(
            f"Jacobians at {list(positions)} of {len(ids)} tokens through {head.layers} layers: positions must lie within "
            "the prompt and the head must hold a layer"
        )
    if head.embedding().dtype != torch.float64:
        raise InputError(f"Jacobians in {head.embedding().dtype}: small singular values need a head loaded in float64")
    tokens = torch.tensor([list(ids)], device=head.embedding().device)
    cache = head.new_cache()
    with torch.no_grad(), in_full_precision(head):
        head(tokens, cache)
        embeddings = head.shell.get_input_embeddings()(tokens)[0]  # [T, D]
        for position in positions:
            yield _at(head, embeddings[position], cache, position)


def _at(head: Head, embedding: torch.Tensor, cache: RollbackCache, position: int) -> Jacobians:
    base = head.shell.base_model
    place = torch.tensor([[position]], device=embedding.device)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for layer in base.layers
    ]
    try:
        with after_prefix(head, cache, position) as own:
            base(inputs_embeds=embedding[None, None], position_ids=place, past_key_values=own, use_cache=True)
            for hook in hooks:
                hook.remove()
            single = [_local(layer, *call) for layer, call in zip(base.layers, calls, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
    states: list[torch.Tensor] = []
    blocks: list[torch.Tensor] = []
    inverses: list[torch.Tensor] = []
    for depth, (state, own_block) in enumerate(single):
        inverse, singular = torch.linalg.inv_ex(own_block)
        if singular:
            inverse = torch.full_like(inverse, torch.inf)
        states.append(state)
        blocks.append(own_block @ blocks[-1] if depth else own_block)
        inverses.append(inverses[-1] @ inverse if depth else inverse)
    return Jacobians(position, torch.stack(states), torch.stack(blocks), torch.stack(inverses))


def _local(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output [D] and Jacobian [D, D] at the input it was called with."""
    # A copy: a view would drag a tangent of everything it is a view of along.
    entry = args[0][0, 0].clone()  # [D]

    def run(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x[None, None], *args[1:], **kwargs)
        return output[0, 0]

    def push(direction: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = torch.func.jvp(run, (entry,), (direction,))[1]
        return image

    basis = torch.eye(len(entry), dtype=entry.dtype, device=entry.device)
    return run(entry), torch.func.vmap(push, out_dims=1)(basis)
