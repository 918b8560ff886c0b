"""Attention of one new position over a prefix whose keys and values are constants, made for many tangents at once.

Transformers concatenates the new keys to the cached ones; under `torch.func.vmap` that copies the prefix once per tangent,
and a Jacobian at position 60 of SmolLM2-135M then takes five times as long as at position 5. Here the two are kept apart.

Footgun: batch 1 and one new position only.

Notation: t positions before, H heads, G key/value heads, S width of one head.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AttentionInterface

from cutlayer.audit.precision import FullPrecision
from cutlayer.errors import InputError
from cutlayer.models.cache import RollbackCache, RollbackLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cutlayer.models.parts import Head

_NAME: Final = "cutlayer-one-position"
_HELD: ContextVar[list[tuple[torch.Tensor, torch.Tensor]]] = ContextVar(
    "keys and values [G, t, S] of the prefix, per layer"
)


@contextmanager
def after_prefix(head: Head, cache: RollbackCache, length: int) -> Iterator[RollbackCache]:
    """Let the head's attention see the first `length` positions of `cache` besides the one it is called with.

    Args:
        head: the layers about to be called, in `in_full_precision`.
        cache: a prompt that the head has seen; it is not changed.
        length: t.

    Yields:
        What to pass as ``past_key_values``.
    """
    own = RollbackCache(0)
    own.layers = [_OwnOnly(length) for _ in range(head.layers)]
    held = _HELD.set([(layer.keys[0, :, :length], layer.values[0, :, :length]) for layer in cache.layers])
    try:
        with _configured(head, _attn_implementation=_NAME):
            yield own
    finally:
        _HELD.reset(held)


@contextmanager
def in_full_precision(head: Head) -> Iterator[None]:
    """`FullPrecision`, and experts one by one: their grouped product knows no float64."""
    with FullPrecision(), _configured(head, _experts_implementation="eager"):
        yield


@contextmanager
def _configured(head: Head, **implementations: str) -> Iterator[None]:
    """Change configurations for a while: each attention module may hold one of its own."""
    configs = {
        id(module.config): module.config for module in head.shell.modules() if hasattr(module, "config")
    }.values()
    usual = [(config, name, getattr(config, name)) for config in configs for name in implementations]
    try:
        for config, name, _ in usual:
            setattr(config, name, implementations[name])
        yield
    finally:
        for config, name, value in usual:
            setattr(config, name, value)


class _OwnOnly(RollbackLayer):
    """Says that `length` positions came before, and hands back the new keys and values alone."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' interface: query [1, H, 1, S], key and value [1, G, 1, S] → [1, 1, H, S]. There is nothing to mask."""
    if settings.get("s_aux") is not None:
        raise InputError("this family adds learned sinks to its attention, which prefix_attention does not know")
    keys, values = _HELD.get()[module.layer_idx]  # type: ignore[index]  # [G, t, S]
    if sliding_window is not None:
        first = max(0, keys.shape[1] - (sliding_window - 1))
        keys, values = keys[:, first:], values[:, first:]
    groups = query[0, :, 0].view(len(keys), -1, query.shape[-1])  # [G, H/G, S]
    # One product per key/value head: with its right side unbatched, it is one large product for all tangents.
    past = torch.stack([mine @ theirs.mT for mine, theirs in zip(groups, keys, strict=True)])  # [G, H/G, t]
    own = (groups * key[0]).sum(-1, keepdim=True)  # [G, H/G, 1]
    scores = torch.cat([past, own], -1) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.softmax(-1)  # [G, H/G, t + 1]
    seen = torch.stack([mine @ theirs for mine, theirs in zip(weights[..., :-1], values, strict=True)])  # [G, H/G, S]
    mixed = seen + weights[..., -1:] * value[0]
    return mixed.flatten(0, 1)[None, None], None


AttentionInterface.register(_NAME, _attend)
