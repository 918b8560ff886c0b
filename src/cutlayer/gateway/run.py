"""One request's answers: generated in a thread, because the model's outer layers block, and read in the event loop.

    run = Run(…)
    async for event in run.events():
        …
    run.cancel()                 # at any time, and more than once

After a cancellation the thread finishes the step it is in, and the session goes back to the pool, as good as before. A reader who
is slow keeps no session waiting; the answer is bounded, and so is what piles up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from cutlayer.client.generation import FinishReason, Piece
from cutlayer.client.logprobs import Logprobs
from cutlayer.client.sampling import Sampling, TokenMask
from cutlayer.errors import CutlayerError, WireError
from cutlayer.gateway.problems import ApiError, of_cutlayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from concurrent.futures import Executor

    from cutlayer.gateway.metrics import Metrics
    from cutlayer.gateway.pool import SessionPool, Slot
    from cutlayer.gateway.served import Generating, Session


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to one prompt."""

    index: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    mask: Callable[[], TokenMask] | None = None

    def begin(self, session: Session) -> Generating:
        """Ask for it."""
        return session.generate(
            self.prompt,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            stop=self.stop,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            mask=self.mask() if self.mask is not None else None,
        )


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt to be sent, and no answer to it yet."""

    index: int = 0
    prompt: list[int]

    def begin(self, session: Session) -> Generating:
        """Ask for it."""
        return session.prefill(self.prompt)


class Begun(msgspec.Struct, frozen=True):
    """The prompt was sent and the first token is on its way, if there is to be one."""

    index: int
    reused: int
    """Tokens of the prompt that were held already."""
    prompt_logprobs: list[Logprobs | None]


class Said(msgspec.Struct, frozen=True):
    """A token was generated."""

    index: int
    piece: Piece


class Ended(msgspec.Struct, frozen=True):
    """An answer is complete."""

    index: int
    finish_reason: FinishReason
    cut_off: bool
    """A stop string ended it, so the last tokens are not part of the text."""
    tokens: int


class Failed(msgspec.Struct, frozen=True):
    """Nothing more comes."""

    error: ApiError


Event = Begun | Said | Ended | Failed | None
"""None: all answers are complete."""


class Run:
    """Generates all `jobs` in one session, one after another.

    Args:
        jobs: at least one.
        owner: the API key's name.
        pool: where `slot` goes back to.
        slot: the session.
        executor: has a free thread for every session of the pool.
        metrics: told of tokens and times.
        failed: told of errors that are not ours.
        since: when the request came, on the monotonic clock.
    """

    def __init__(
        self,
        jobs: Sequence[Job | Prefill],
        owner: str,
        pool: SessionPool,
        slot: Slot,
        executor: Executor,
        metrics: Metrics,
        failed: Callable[[BaseException], None],
        since: float,
    ) -> None:
        self.released = 0
        """Positions the session had sent when the last event came."""
        self.first: Event = None
        """Once `begun` is set."""
        self._jobs = jobs
        self._owner = owner
        self._pool = pool
        self._slot = slot
        self._metrics = metrics
        self._failed = failed
        self._since = since
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        """Set when there is something to read."""
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._reason: ApiError | None = None
        self._generation: Generating | None = None
        self._started = time.monotonic()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the session has been given back."""
        executor.submit(self._work)

    async def next(self) -> Event:
        """The next event; wait for it."""
        return await self._events.get()

    async def events(self) -> AsyncIterator[Begun | Said | Ended | Failed]:
        """Until all answers are complete or something failed."""
        while (event := await self.next()) is not None:
            yield event
            if isinstance(event, Failed):
                return

    def cancel(self, reason: ApiError | None = None) -> None:
        """Stop soon.

        Args:
            reason: what a reader who is still there is told.
        """
        self._reason = self._reason or reason
        self._cancelled.set()
        generation = self._generation
        if generation is not None:
            generation.cancel()

    def _work(self) -> None:
        """In a thread of the executor."""
        last = self._generate()
        seconds = time.monotonic() - self._started
        with suppress(RuntimeError):  # the loop is closed, and the pool with it
            self._loop.call_soon_threadsafe(self._end, last, self._slot.released, seconds)

    def _generate(self) -> Failed | None:
        """All answers; the last event."""
        try:
            session = self._slot.prepare(self._owner)
            for job in self._jobs:
                if not self._cancelled.is_set():
                    self._answer(session, job)
        except CutlayerError as error:
            if isinstance(error, WireError):
                self._failed(error)
                self._give_up(error)
            return Failed(of_cutlayer(error))
        except Exception as error:  # noqa: BLE001, RUF100 - the reader must hear of it, whatever it is
            self._failed(error)
            self._give_up(None)
            return Failed(ApiError(500, "an error of this gateway; see its log", "server_error"))
        if self._cancelled.is_set():
            return Failed(self._reason or ApiError.away("the answer was cancelled"))
        return None

    def _end(self, last: Failed | None, released: int, seconds: float) -> None:
        # In this order: a client that asks again as soon as it has its answer must find the session free.
        self._pool.give(self._slot, seconds)
        self._put(last, released)
        self.ended.set_result(None)

    def _answer(self, session: Session, job: Job | Prefill) -> None:
        generation = job.begin(session)
        self._generation = generation
        if self._cancelled.is_set():  # said between the last look and now
            generation.cancel()
        before, first = session.released, True
        moment = time.monotonic()
        for piece in generation:
            now = time.monotonic()
            if first:
                self._begun(job, generation)
                if job.index == 0:
                    self._metrics.first_token.observe(now - self._since)
            else:
                self._metrics.between_tokens.observe(now - moment)
            first, moment = False, now
            self._emit(Said(job.index, piece))
        self._metrics.prompt_tokens.inc(len(job.prompt))
        self._metrics.answer_tokens.inc(len(generation.token_ids))
        self._metrics.released.inc(session.released - before)
        reason = generation.finish_reason or "cancelled"
        if reason == "cancelled":
            return
        if first:
            self._begun(job, generation)
        self._emit(Ended(job.index, reason, generation.hit_stop_string, len(generation.token_ids)))

    def _begun(self, job: Job | Prefill, generation: Generating) -> None:
        self._emit(Begun(job.index, generation.reused, generation.prompt_logprobs))

    def _give_up(self, error: CutlayerError | None) -> None:
        with suppress(Exception):
            self._slot.discard(error)

    def _emit(self, event: Event) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, event, self._slot.released)

    def _put(self, event: Event, released: int) -> None:
        self.released = released
        if not self.begun.is_set():
            self.first = event
            self.begun.set()
        self._events.put_nowait(event)
