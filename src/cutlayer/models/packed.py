"""Linear layers whose bfloat16 weights lie as a processor's matrix units read them.

Given a plain matrix, oneDNN puts it into that order again for every product. Here it is done once, when a part is filled. The
numbers computed with stay the same; how much faster steps are is in `benchmarks/records/packed.json`. Other dtypes were not
measured and stay plain.

Where the matrix units have tiles (AMX), oneDNN serves 17 to 32 rows of packed weights more slowly than 33, so they are filled up
to 33. A step of speculation has about so many. Without tiles that would be slower (`packed_without_tiles.json`).

Footgun: nothing can be differentiated through a packed layer. The server's layers and the client's tail are packed; through the
head some defences differentiate. What has to be trained is `unpack`ed first.

Notation: T rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS: Final = 16
"""Rows the layout is chosen for: one tile of the matrix units. The record says how it serves one row, and a hundred."""
_has_tiles: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
FILLED_WITH_TILES: Final = range(17, 33)
FILLED: Final = FILLED_WITH_TILES if _has_tiles() else range(0)
"""Numbers of rows that are filled up to one more than all of them."""
_OPERATORS: Final = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")


class PackedLinear(nn.Module):
    """A linear layer that can only be applied.

    Args:
        linear: bfloat16, on a processor for which `can_pack` holds.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Opaque to everything but the product, and no parameter: there is nothing to load, move or train.
        self.register_buffer(
            "packed", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS), persistent=False
        )
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[…, T, I] → […, T, O]."""
        count = rows.numel() // rows.shape[-1]
        if count in FILLED:
            filled = F.pad(rows.reshape(count, -1), (0, 0, 0, FILLED.stop - count))
            return self._product(filled)[:count].view(*rows.shape[:-1], -1)
        return self._product(rows)

    def plain(self) -> nn.Linear:
        """The layer this was made of; nothing of it is learned."""
        weight = self.packed.to_dense()
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias, requires_grad=False)
        return linear

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return product


def can_pack(tensor: torch.Tensor) -> bool:
    """Whether weights like this one gain from it: bfloat16 on a processor that computes in it.

    False also where this torch lacks the operators, which are its compiler's own.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype is torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(module: nn.Module) -> None:
    """Replace all linear layers below `module` that gain from it, in place; one at a time, so memory grows by one matrix."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight):
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)


def unpack(module: nn.Module) -> None:
    """Undo `pack`: plain layers of the same numbers, in memory of their own."""
    for name, child in module.named_children():
        if isinstance(child, PackedLinear):
            setattr(module, name, child.plain())
        else:
            unpack(child)
