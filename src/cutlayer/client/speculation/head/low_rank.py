"""A linear map that stays as it is, and a change of low rank beside it (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import nn


class LowRank(nn.Module):
    """y = W x + up(down(x)), in the beginning W x.

    Args:
        linear: W, frozen and possibly shared.
        rank: columns of `up`, fewer where W is smaller than that.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        rank = min(rank, linear.in_features, linear.out_features)
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]"""
        return self.linear(inputs) + self.up(self.down(inputs))  # type: ignore[no-any-return]

    def folded(self) -> nn.Linear:
        """One map with the change in it; its bias is shared."""
        changed = self.linear.weight.float() + self.up.weight.float() @ self.down.weight.float()
        outputs, inputs = changed.shape
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(changed.to(self.linear.weight), requires_grad=False)
        linear.bias = self.linear.bias
        return linear
