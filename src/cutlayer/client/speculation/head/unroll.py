"""The head on texts that are known: what it would guess at every position, that many guesses after the last verified one.

Pass 0 has a verified state before every position. In pass d the states come from pass d − 1, so that position i stands d guesses
after the last verified one: it sees the verified positions up to i − d and of every pass in between the one position on its way.
This is what drafting does, for all positions of a text at once (training-time test, EAGLE-3, arXiv 2503.01840).

Notation: B batch, T tokens, D hidden size, R tokens of the head's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cutlayer.client.speculation.head.network import DraftHead


def unroll(head: DraftHead, ids: torch.Tensor, returned: torch.Tensor, passes: int) -> Iterator[torch.Tensor]:
    """Logits [B, T, R] after every position, of each pass in turn; those of the first d positions of pass d mean nothing.

    Args:
        head: the network.
        ids: tokens [B, T], padded at the end.
        returned: states of the server for them [B, T, D].
        passes: how many.
    """
    cache = DynamicCache()
    states = returned
    for depth in range(passes):
        inputs = head.inputs(ids, pad(states, (0, 0, 1, 0))[:, :-1], own=depth > 0)  # [B, T, D]
        mask = _mask(ids.shape[1], depth, head.window, inputs)
        states, logits = head.masked(inputs, mask, cache)
        yield logits


def _mask(length: int, depth: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Additive mask [1, 1, T, (depth + 1) T] of a pass over the keys of all passes so far."""
    at = torch.arange(length, device=like.device)
    behind = at[:, None] - at  # [T, T], positions back
    seen = [behind >= depth, *(behind == depth - earlier for earlier in range(1, depth + 1))]
    blocked = ~torch.cat(seen, dim=1)  # [T, (depth + 1) T]
    if window is not None:
        blocked |= (behind >= window).repeat(1, depth + 1)
    # A position that far from the beginning sees itself at the least, so no row is without any.
    dtype = torch.get_autocast_dtype(like.device.type) if torch.is_autocast_enabled(like.device.type) else like.dtype
    return torch.zeros_like(blocked, dtype=dtype).masked_fill(blocked, torch.finfo(dtype).min)[None, None]
