"""Run a model in float64 throughout, including where its code asks for float32.

Most families normalise in float32 whatever the weights are (``hidden_states.to(torch.float32)``), which is a safeguard
against bfloat16 and a loss of nine digits in float64. Within `FullPrecision` such casts keep float64.

    head = load_client(directory, cut, torch.float64).head
    with FullPrecision():
        …
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable


class FullPrecision(TorchFunctionMode):
    """What would turn a float64 tensor into float32 leaves it in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept ``.to(torch.float32)``, ``.float()`` and ``softmax(…, dtype=torch.float32)``."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        return func(*args, **kwargs)
