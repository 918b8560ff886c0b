"""What this side computed during a run, written down by hooks on head and tail: the yardstick for what left.

Notation: T tokens of a call, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from cutlayer.models.parts import ClientParts

LOGIT_WINDOW: Final = 32
"""Logits kept around the largest one: 64 bytes at two bytes each, enough to be found again and little to keep."""


class HeadCall(NamedTuple):
    """One call of the head."""

    base: int
    """Position of its first token."""
    ids: list[int]
    hidden: torch.Tensor
    """[T, D], before the defence."""


class Witness:
    """Records calls of both parts while entered.

    Args:
        parts: the client's.
    """

    def __init__(self, parts: ClientParts) -> None:
        self.head_calls: list[HeadCall] = []
        self.logits: list[torch.Tensor] = []
        """Per call of the tail: up to `LOGIT_WINDOW` float32 values around the arg-max of the last position."""
        self.logit_peaks: list[int] = []
        """Where in its window each arg-max lies."""
        self._parts = parts
        self._hooks: list[Any] = []

    def __enter__(self) -> Witness:
        self._hooks = [
            self._parts.head.register_forward_hook(self._head),
            self._parts.tail.register_forward_hook(self._tail),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _head(self, module: torch.nn.Module, inputs: tuple[Any, ...], hidden: torch.Tensor) -> None:
        ids, cache = inputs[:2]  # the probe guesses nothing, so its rows are a chain
        # A copy: a defence is free to work in place.
        self.head_calls.append(HeadCall(cache.position - ids.shape[1], ids[0].tolist(), hidden[0].clone()))

    def _tail(self, module: torch.nn.Module, inputs: tuple[Any, ...], logits: torch.Tensor) -> None:
        last = logits[0, -1].float().cpu()  # [V]
        peak = int(last.argmax())
        start = max(0, min(peak - LOGIT_WINDOW // 2, len(last) - LOGIT_WINDOW))
        self.logits.append(last[start : start + LOGIT_WINDOW].clone())
        self.logit_peaks.append(peak - start)
