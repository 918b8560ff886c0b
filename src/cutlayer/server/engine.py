"""Runs the body, one step at a time, in a thread of its own so that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from cutlayer.models.cache import RollbackCache
    from cutlayer.models.parts import Body


class Computed(NamedTuple):
    """What a step produced."""

    hidden: torch.Tensor
    """[T, D] on the model's device."""
    microseconds: int
    """Time in the model, queueing excluded."""


class Engine:
    """The body and its worker thread.

    Args:
        body: filled, on its device.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._parameter = next(body.parameters())
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="body")

    async def run(self, hidden: torch.Tensor, base: int, cache: RollbackCache) -> Computed:
        """Roll `cache` back to `base` and run hidden states [T, D] through the body.

        If the body fails, the cache is left at `base`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._run, hidden, base, cache)

    def close(self) -> None:
        """Finish the step in progress and stop."""
        self._worker.shutdown(cancel_futures=True)

    def _run(self, hidden: torch.Tensor, base: int, cache: RollbackCache) -> Computed:
        started = time.perf_counter()
        cache.rollback(base)
        try:
            with torch.inference_mode():
                inputs = hidden.to(self._parameter.device, self._parameter.dtype).unsqueeze(0)  # [1, T, D]
                output = self._body(inputs, cache)[0]  # [T, D]
        except BaseException:
            cache.rollback(base)
            raise
        return Computed(output, round((time.perf_counter() - started) * 1e6))
