"""Runs the body for all sessions, in a thread of its own so that the event loop keeps answering.

Steps that arrive within a small window share a forward. The thread also owns the cache's pages: a session that ends while
its step is running keeps its pages until that step is over, so nobody else's positions can land in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch

from cutlayer.models.pages import PagePool, PageTable
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.server.schedule import Schedule, Slice, Step

if TYPE_CHECKING:
    from cutlayer.models.parts import Body
    from cutlayer.tree import Placement

WINDOW_S: Final = 0.002
"""How long a forward waits for steps that are about to arrive."""


class Computed(NamedTuple):
    """What a step produced."""

    hidden: torch.Tensor
    """[T, D] on the model's device."""
    microseconds: int
    """Time of the forwards it took part in, queueing excluded."""


class Runner(Protocol):
    """What runs sessions' steps; a session's cache is known by whatever `new_cache` returned."""

    def new_cache(self, owner: str, reserve: int) -> Any:
        """A cache for one more session of `owner`, which may grow to `reserve` positions whatever happens.

        Raises:
            CacheFullError: there is no room.
        """

    async def run(self, hidden: torch.Tensor, place: Placement, cache: Any) -> Computed:
        """Run hidden states [T, D] through the body at their place in `cache`.

        A step that fails leaves the cache as it was, or at the place's base, or somewhere in the step. Cancelling does not
        interrupt a forward that has begun.

        Raises:
            CacheFullError: there is no room for so many positions.
            SessionLostError: the cache is gone.
        """

    def release(self, cache: Any) -> None:
        """Free a cache; a step of it that still waits is dropped."""

    def cache_bytes(self) -> int | None:
        """Bytes all caches hold on the device; None if they are elsewhere."""

    def close(self) -> None:
        """Finish the steps that wait and stop."""


class _Job(Step):
    def __init__(
        self, done: asyncio.Future[Computed], hidden: torch.Tensor, place: Placement, table: PageTable
    ) -> None:
        super().__init__(table, table.owner, len(hidden))
        self.future = done
        self.hidden = hidden
        self.place = place
        self.table = table
        self.outputs: list[torch.Tensor] = []
        self.seconds = 0.0


class Engine:
    """The body and its worker thread.

    Args:
        body: filled, on its device; changed, and not to be used elsewhere any more.
        positions: of the cache, for all sessions together.
        per_owner: of those, how many one owner may hold; 0 sets no limit.
        window: seconds a forward waits for steps that are about to arrive.
    """

    def __init__(self, body: Body, positions: int, per_owner: int = 0, window: float = WINDOW_S) -> None:
        parameter = next(body.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._pool = PagePool(body.layers, positions, per_owner)
        self._body = RaggedBody(body, self._pool)
        self._schedule: Schedule[_Job] = Schedule(window)
        self._inbox: SimpleQueue[_Job | PageTable | None] = SimpleQueue()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="body", daemon=True)
        self._worker.start()

    def new_cache(self, owner: str, reserve: int) -> PageTable:
        """See `Runner`."""
        return PageTable(self._pool, owner, reserve)

    async def run(self, hidden: torch.Tensor, place: Placement, cache: PageTable) -> Computed:
        """See `Runner`."""
        done: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._inbox.put(_Job(done, hidden, place, cache))
        return await done

    def release(self, cache: PageTable) -> None:
        """See `Runner`."""
        self._inbox.put(cache)

    def cache_bytes(self) -> int:
        """See `Runner`."""
        return self._pool.nbytes()

    def close(self) -> None:
        """See `Runner`."""
        self._inbox.put(None)
        self._worker.join()

    def _work(self) -> None:
        schedule = self._schedule
        while not self._closing or schedule:
            self._collect()
            slices = [one for one in schedule.take(time.monotonic()) if self._prepared(one)]
            if slices:
                self._settle(self._forward(slices))

    def _collect(self) -> None:
        """Take what has arrived; with nothing to do wait for it, and wait a little for what is about to come."""
        schedule = self._schedule
        since = None
        while True:
            if schedule and since is None:
                since = time.monotonic()
            pause = schedule.hold(time.monotonic(), since) if since is not None else None
            try:
                if self._closing:
                    item = self._inbox.get_nowait()
                else:
                    item = self._inbox.get(timeout=pause) if pause != 0 else self._inbox.get_nowait()
            except Empty:
                if pause == 0 or self._closing:
                    return
                continue
            if item is None:
                self._closing = True
            elif isinstance(item, PageTable):
                for job in schedule.drop(item):
                    self._answer(job, asyncio.CancelledError())
                item.free()
            else:
                schedule.add(item, time.monotonic())

    def _prepared(self, part: Slice[_Job]) -> bool:
        """Make room for a slice's rows, or drop its step."""
        job = part.step
        if job.future.cancelled():
            self._schedule.remove(job)
            return False
        try:
            if part.start == 0:
                job.table.keep(job.place.anchor, job.place.path, job.place.base + job.rows)
        except Exception as error:  # the thread goes on, whatever it is; the step's own connection answers it
            self._schedule.remove(job)
            self._answer(job, error)
            return False
        return True

    def _forward(self, slices: list[Slice[_Job]]) -> list[_Job]:
        """Run slices together; returns the jobs that are complete."""
        started = time.monotonic()
        try:
            with torch.inference_mode():
                outputs = self._body(
                    [
                        Chunk(
                            job.table,
                            job.hidden[start:stop].to(self._device, self._dtype),
                            job.place.backs[start:stop],
                        )
                        for job, start, stop in slices
                    ]
                )  # [T, D] each
        except Exception as error:
            if len(slices) > 1:  # one session's trouble is not the others'
                return [job for one in slices for job in self._forward([one])]
            job = slices[0].step
            job.table.rollback(job.place.base)
            self._schedule.remove(job)
            self._answer(job, error)
            return []
        ended = time.monotonic()
        for (job, _, _), output in zip(slices, outputs, strict=True):
            job.outputs.append(output)
            job.seconds += ended - started
        return self._schedule.finished(slices, ended - started, ended)

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            hidden = job.outputs[0] if len(job.outputs) == 1 else torch.cat(job.outputs)
            self._answer(job, Computed(hidden, round(job.seconds * 1e6)))

    @staticmethod
    def _answer(job: _Job, outcome: Computed | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            job.future.get_loop().call_soon_threadsafe(_set, job.future, outcome)


def _set(done: asyncio.Future[Computed], outcome: Computed | BaseException) -> None:
    if done.done():  # cancelled meanwhile
        return
    if isinstance(outcome, asyncio.CancelledError):
        done.cancel()
    elif isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
