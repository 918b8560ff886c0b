"""The client's layers as a function of one position's embedding, everything before it held fixed.

    local = LocalMap(head, ids)              # ids end with the position's token
    jacobian = Jacobian(local)               # J_tt = ∂h_t / ∂e_t
    jacobian.push(jacobian.pull(v))          # J Jᵀ v

Keys and values of the prefix do not depend on the token after it, so they are computed once and every further evaluation
costs one token. They are computed from the tokens alone, all in one forward, whatever pieces a prompt was sent in: the same
prefix gives the same bits.

Footgun: everything that differentiates must run inside `differentiable`; callers usually stand in inference mode, and fused
attention has no second derivative.

Notation: S sequences, P tokens up to and including the position, B evaluations (a multiple of S), D hidden size.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cutlayer.models.parts import Head


@contextmanager
def differentiable() -> Iterator[None]:
    """Derivatives of any order, also where the caller had switched them off."""
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class LocalMap:
    """e_t → h_t for the last position of each sequence.

    Args:
        head: the client's first layers.
        ids: [S, P], P ≥ 1.
    """

    def __init__(self, head: Head, ids: torch.Tensor) -> None:
        self._model = head.shell.base_model
        ids = ids.to(head.embedding().device)
        self._sequences, self._position = len(ids), ids.shape[1] - 1
        with torch.inference_mode(False), torch.no_grad():
            self.embedding: torch.Tensor = self._model.get_input_embeddings()(ids[:, -1])  # [S, D]
            self._prefix = self._keys_and_values(ids[:, :-1]) if head.layers and self._position else []
        self._layers = head.layers

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, D] of embeddings [B, D]; rows go sequence by sequence, B / S to each."""
        copies = len(embeddings) // self._sequences
        cache = None
        if self._layers:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(self._prefix):
                cache.update(keys.repeat_interleave(copies, 0), values.repeat_interleave(copies, 0), layer)
        output = self._model(
            inputs_embeds=embeddings.unsqueeze(1),  # [B, 1, D]
            position_ids=torch.full((1, 1), self._position, device=embeddings.device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: torch.Tensor = output.last_hidden_state[:, 0]  # [B, D]
        return hidden

    def _keys_and_values(self, prefix: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        cache = DynamicCache()
        self._model(input_ids=prefix, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]


class Jacobian:
    """J_tt at the sequences' own embeddings, as products with vectors; one forward and its graphs are kept.

    Products with J are derivatives of products with Jᵀ: forward-mode differentiation would do, but lacks some operators.

    Args:
        local: the function.
        copies: vectors to multiply at once for each sequence.
    """

    def __init__(self, local: LocalMap, copies: int = 1) -> None:
        self._at = local.embedding.repeat_interleave(copies, 0).requires_grad_()  # [B, D]
        self._hidden = local(self._at)  # [B, D]
        # Jᵀw is linear in w, so it does not matter at which w it is differentiated
        self._probe = torch.zeros_like(self._hidden, requires_grad=True)
        (self._pulled,) = torch.autograd.grad(self._hidden, self._at, self._probe, create_graph=True)

    def pull(self, vectors: torch.Tensor) -> torch.Tensor:
        """Jᵀv of vectors [B, D], or [D] where B is 1; float32."""
        cotangents = vectors.to(self._hidden).view_as(self._hidden)
        (pulled,) = torch.autograd.grad(self._hidden, self._at, cotangents, retain_graph=True)
        return pulled.float().view_as(vectors)

    def push(self, vectors: torch.Tensor) -> torch.Tensor:
        """Ju, as `pull`."""
        tangents = vectors.to(self._at).view_as(self._at)
        (pushed,) = torch.autograd.grad(self._pulled, self._probe, tangents, retain_graph=True)
        return pushed.float().view_as(vectors)

    def gram(self, vectors: torch.Tensor) -> torch.Tensor:
        """J Jᵀ v, as `pull`."""
        return self.push(self.pull(vectors))
