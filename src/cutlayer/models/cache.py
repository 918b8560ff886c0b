"""Key/value cache of one part and one session, with rollback to any position.

Transformers' dynamic cache concatenates on every step (a copy of the whole cache per token) and forgets what slid out
of a window, so it cannot roll back further. This one writes into buffers that grow by doubling and keeps every position
also for sliding-window layers; the window is then applied by the attention mask alone. Rolling back is setting a length.

Footgun: a layer's returned keys are a view into its buffer, valid until the next update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from cutlayer.errors import ProtocolError
from cutlayer.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_CAPACITY: Final = 128


class RollbackLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [B, heads, capacity, head_dim], the first `length` positions valid."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the first buffers in the dtype and on the device of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        capacity = max(_FIRST_CAPACITY, key_states.shape[-2])
        self.keys = _buffer_like(key_states, capacity)
        self.values = _buffer_like(value_states, capacity)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T positions and return all valid ones, each [B, heads, length, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys = _grown(self.keys, self.length, end)
            self.values = _grown(self.values, self.length, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key length, offset of the first key) for a forward of `query_length` positions."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.length

    def get_max_length(self) -> int:
        """Unbounded; sessions are bounded by their own limits."""
        return -1


class RollbackCache(Cache):  # type: ignore[misc]
    """Caches of `layers` consecutive layers.

    Args:
        layers: how many.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[RollbackLayer() for _ in range(layers)])
        # A part without layers (k = 0 or m = 0) still has positions.
        self.tree = Tree()

    @property
    def position(self) -> int:
        """Slots held; of a chain, its positions."""
        return len(self.tree)

    def rollback(self, position: int) -> None:
        """Forget everything from `position` on.

        Raises:
            ProtocolError: `position` lies beyond what is held.
        """
        self.keep(position)

    def keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        """Of the slots from `anchor` on keep those of a path, see `Tree.keep`, and forget the others.

        Raises:
            ProtocolError: it is none; nothing changes.
        """
        self.tree.check_path(anchor, path)
        if list(path) != list(range(len(path))):
            self._move(anchor, [anchor + distance for distance in path])
        self.tree.keep(anchor, path)
        for layer in self.layers:
            layer.length = min(layer.length, self.position)

    def select(self, positions: torch.Tensor) -> None:
        """Keep only the given positions, in that order; ones that were rotated for another place stay so.

        Args:
            positions: [P] distinct indices of held positions, ascending.

        Raises:
            ProtocolError: one is not held.
        """
        count = len(positions)
        if count and not 0 <= int(positions[0]) <= int(positions[-1]) < self.position:
            raise ProtocolError(f"cannot keep {positions.tolist()}: the cache holds {self.position} positions")
        self._move(0, positions)
        for layer in self.layers:
            layer.length = count
        self.tree.rollback(count)

    @torch.inference_mode()  # forwards made the buffers in this mode, and they can be written in no other
    def _move(self, start: int, sources: torch.Tensor | list[int]) -> None:
        stop = start + len(sources)
        for layer in self.layers:
            layer.keys[:, :, start:stop] = layer.keys[:, :, sources]
            layer.values[:, :, start:stop] = layer.values[:, :, sources]

    def nbytes(self) -> int:
        """Bytes allocated on the device."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)


def _buffer_like(states: torch.Tensor, capacity: int) -> torch.Tensor:
    batch, heads, _, head_dim = states.shape
    return states.new_empty(batch, heads, capacity, head_dim)  # [B, heads, capacity, head_dim]


def _grown(buffer: torch.Tensor, length: int, needed: int) -> torch.Tensor:
    grown = _buffer_like(buffer, max(2 * buffer.shape[-2], needed))
    grown[:, :, :length] = buffer[:, :, :length]
    return grown
