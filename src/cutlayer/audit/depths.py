"""The hidden states of every depth from one forward.

    with layer_outputs(head) as outputs:
        head(ids, head.new_cache())
    outputs[3]            # what layer 4 passed on, [B, T, D]

Notation: B batch, T tokens, D hidden size, k layers of the head; depth i is the state after i layers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from cutlayer.models.parts import Head


@contextmanager
def layer_outputs(head: Head) -> Iterator[list[torch.Tensor]]:
    """Collect what each layer returns, [B, T, D] each, in order; a second forward appends to the first's.

    Args:
        head: the layers to watch.
    """
    outputs: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for layer in head.shell.base_model.layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def checked_depths(head: Head, depths: Sequence[int] | None) -> list[int]:
    """The depths to look at; all of the head's if None.

    Raises:
        InputError: none, or one that the head does not reach.
    """
    chosen = list(range(1, head.layers + 1)) if depths is None else list(depths)
    wrong = [depth for depth in chosen if not 1 <= depth <= head.layers]
    if wrong or not chosen:
        raise InputError(f"depths {chosen}: give depths between 1 and {head.layers}, the layers this head holds")
    return chosen
