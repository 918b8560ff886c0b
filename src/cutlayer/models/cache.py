"""Key/value cache of one part and one session, with rollback to any position.

Transformers' dynamic cache concatenates on every step (a copy of the whole cache per token) and forgets what slid out
of a window, so it cannot roll back further. This one writes into buffers that grow by doubling and keeps every position
also for sliding-window layers; the window is then applied by the attention mask alone. Rolling back is setting a length.

Footgun: a layer's returned keys are a view into its buffer, valid until the next update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers.cache_utils import Cache, CacheLayerMixin

from cutlayer.errors import ProtocolError

if TYPE_CHECKING:
    import torch

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
        # A part without layers (k = 0 or m = 0) still has a position.
        self.position = 0

    def advance(self, tokens: int) -> None:
        """Note that `tokens` more positions have passed through the part."""
        self.position += tokens

    def rollback(self, position: int) -> None:
        """Forget everything from `position` on.

        Raises:
            ProtocolError: `position` lies beyond what is held.
        """
        if not 0 <= position <= self.position:
            raise ProtocolError(f"cannot roll back to position {position}: the cache holds {self.position}")
        self.position = position
        for layer in self.layers:
            layer.length = min(layer.length, position)

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
        for layer in self.layers:
            layer.keys[:, :, :count] = layer.keys[:, :, positions]
            layer.values[:, :, :count] = layer.values[:, :, positions]
            layer.length = count
        self.position = count

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
