"""A defence that is a public function of the hidden state: no key, no coins, and therefore nothing to hide behind.

Whoever knows the function runs it on every candidate and compares. It can still cost an attack that was not told of it.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from cutlayer.defences.positions import Positions


class PublicMap:
    """Apply one function to every row.

    Args:
        apply: the function, [T, D] → [T, D], rows independent of each other.
        spec: how it was specified.
    """

    def __init__(self, apply: Callable[[torch.Tensor], torch.Tensor], spec: str) -> None:
        self._apply = apply
        self._spec = spec

    def release(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """See `Defence.release`."""
        return self._apply(hidden)

    def describe(self) -> str:
        """See `Defence.describe`."""
        return self._spec
