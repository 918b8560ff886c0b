"""Runs the body, one step at a time, in a thread of its own so that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from queue import SimpleQueue
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


class _Job(NamedTuple):
    done: asyncio.Future[Computed]
    hidden: torch.Tensor
    base: int
    cache: RollbackCache


class Engine:
    """The body and its worker thread.

    Jobs go through a plain queue: `run_in_executor` passes each through three more objects, on a path that runs with cold
    caches right after the model.

    Args:
        body: filled, on its device.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        parameter = next(body.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="body", daemon=True)
        self._worker.start()

    async def run(self, hidden: torch.Tensor, base: int, cache: RollbackCache) -> Computed:
        """Roll `cache` back to `base` and run hidden states [T, D] through the body.

        If the body fails, the cache is left at `base`. Cancelling does not interrupt a step that has begun.
        """
        done: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(done, hidden, base, cache))
        return await done

    def close(self) -> None:
        """Finish the steps that wait and stop."""
        self._jobs.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome: Computed | BaseException = self._compute(job)
            except BaseException as error:
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                job.done.get_loop().call_soon_threadsafe(_settle, job.done, outcome)

    def _compute(self, job: _Job) -> Computed:
        started = time.perf_counter()
        job.cache.rollback(job.base)
        try:
            with torch.inference_mode():
                inputs = job.hidden.to(self._device, self._dtype).unsqueeze(0)  # [1, T, D]
                output = self._body(inputs, job.cache)[0]  # [T, D]
        except BaseException:
            job.cache.rollback(job.base)
            raise
        return Computed(output, round((time.perf_counter() - started) * 1e6))


def _settle(done: asyncio.Future[Computed], outcome: Computed | BaseException) -> None:
    if done.done():  # cancelled meanwhile
        return
    if isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
