"""Low-rank adaptation (Hu et al., arXiv 2106.09685): y = Wx + (α/r)·B(Ax) with W frozen, A random, B zero at first.

Notation: r rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection


class LoraLinear(nn.Module):
    """A linear layer and its correction.

    Args:
        base: frozen.
        rank: r.
        alpha: α; the correction is scaled by α/r.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out]"""
        output: torch.Tensor = self.base(x) + self.scale * (x @ self.a.T @ self.b.T)
        return output


def adapt(model: nn.Module, names: Collection[str], rank: int, alpha: float) -> None:
    """Freeze a model and put a correction on every linear layer of these names.

    Args:
        model: changed in place.
        names: last components, e.g. ``q_proj``.
        rank: r.
        alpha: α.

    Raises:
        InputError: the model has no such layer.
    """
    model.requires_grad_(False)
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not found:
        raise InputError(f"{type(model).__name__} has no linear layers named {', '.join(sorted(names))} to adapt")
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child, rank, alpha))
