"""What all endpoints share: the model, its sessions, and how a request gets answers from them."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from cutlayer.errors import CutlayerError
from cutlayer.gateway.body import BodyLimits, decode, read_body
from cutlayer.gateway.hints import Hints
from cutlayer.gateway.logs import place_of, request_logger
from cutlayer.gateway.metrics import Metrics
from cutlayer.gateway.pool import SessionPool
from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.run import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from starlette.requests import Request
    from structlog.typing import FilteringBoundLogger

    from cutlayer.gateway.body import Refusals
    from cutlayer.gateway.pool import Slot
    from cutlayer.gateway.run import Job, Prefill
    from cutlayer.gateway.served import Served

T = TypeVar("T")

_PROBE_EVERY_S: Final = 1.0
_LAST_STEP_S: Final = 5.0
"""For the step that a cancelled answer is in."""
_NO_NAME: Final = ""
"""Owner of requests where no API keys are in use."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway lets its users use."""

    sessions: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    queue: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 16
    """Waiting requests per API key."""
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    """A chat answer's length when the request names none."""
    body: BodyLimits = BodyLimits()
    ping_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 15.0
    """A stream that is silent for so long gets a comment, so that proxies keep it."""
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    """Answers in progress may take so long to finish when the gateway is stopped."""


class ClientGoneError(Exception):
    """The client disconnected before it had its answer."""


class Gateway:
    """One model behind OpenAI's interface.

    Args:
        served: the model; its session is owned from now on.
        limits: bounds.
        name: what the model is called; None is its directory's name.
        log: where events go.
    """

    def __init__(
        self,
        served: Served,
        limits: Limits | None = None,
        name: str | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.session = served.session
        self.model = name or served.name
        self.tokenizer = served.tokenizer
        self.schemas = served.schemas
        self.vocabulary = served.vocabulary
        self.max_positions = served.max_positions
        self.created = int(time.time())
        self.fingerprint = f"fp_{served.fingerprint[:12]}"
        self.metrics = Metrics()
        self.log = log or request_logger()
        self.statement = served.statement
        self.defence = served.defence
        self.headers = {
            "x-cutlayer-cut": served.cut,
            "x-cutlayer-defence": _ascii(self.defence),
            "x-cutlayer-readable": _ascii(self.statement),
        }
        """Of every answer."""
        self.pool = SessionPool(self.session, self.limits.sessions, self.limits.queue, self.metrics.pool)
        self._hints = Hints(self.pool)
        self._executor = ThreadPoolExecutor(self.limits.sessions, thread_name_prefix="session")
        self._runs: set[Run] = set()
        self._well = True
        self._probed = 0.0
        self._probing = asyncio.Lock()

    async def read(self, request: Request, kind: type[T], refusals: Refusals) -> T:
        """The request's body as `kind`.

        Raises:
            ApiError: it is none.
        """
        return decode(await read_body(request, self.limits.body), kind, refusals)

    def check_model(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            ApiError: 404.
        """
        if name != self.model:
            raise ApiError(
                404,
                f"there is no such model here; this gateway serves '{self.model}'",
                param="model",
                code="model_not_found",
            )

    def check_prompt(self, ids: Sequence[int], param: str) -> None:
        """Refuse token ids that are none, and prompts that do not fit.

        Raises:
            ApiError: 400.
        """
        if not ids:
            raise ApiError.bad("the prompt is empty; give at least one token", param)
        if not all(0 <= token < self.vocabulary for token in ids):
            raise ApiError.bad(f"a token id is outside the vocabulary of {self.vocabulary}", param)
        if len(ids) > self.max_positions:
            raise ApiError.bad(
                f"the prompt has {len(ids)} tokens, and a session holds {self.max_positions}",
                param,
                "context_length_exceeded",
            )

    def check_bias(self, bias: Mapping[int, float] | None) -> None:
        """Refuse a bias of tokens that do not exist.

        Raises:
            ApiError: 400.
        """
        if bias and not all(0 <= token < self.vocabulary for token in bias):
            raise ApiError.bad(f"a token id is outside the vocabulary of {self.vocabulary}", "logit_bias")

    async def start(self, request: Request, jobs: Sequence[Job]) -> Run:
        """Wait for a session, and there for the first event, which is left to be read.

        Cancelling frees the session.

        Raises:
            ApiError: too many wait already, or shutting down.
        """
        owner, prompt = owner_of(request), jobs[0].prompt
        await self._hints.make_way(owner, prompt)
        slot = await self.pool.take(owner, prompt)
        return await _begun(self._run(request, jobs, slot))

    async def hint(self, request: Request, prefill: Prefill) -> Run:
        """Send a prompt that is not complete, in a session that is free now. As `start` otherwise.

        Raises:
            ApiError: none is free, or shutting down.
        """
        slot = self._hints.take(owner_of(request), prefill.prompt)
        run = self._run(request, [prefill], slot)
        self._hints.add(run, slot)
        return await _begun(run)

    def _run(self, request: Request, jobs: Sequence[Job | Prefill], slot: Slot) -> Run:
        owner, since = owner_of(request), arrival_of(request)
        run = Run(jobs, owner, self.pool, slot, self._executor, self.metrics, self.report, since)
        self._runs.add(run)
        run.ended.add_done_callback(lambda _: self._runs.discard(run))
        return run

    def ledger(self, run: Run) -> dict[str, str]:
        """The header that says what the session has released so far."""
        return {"x-cutlayer-ledger": f"positions={run.released}; defence={_ascii(self.defence)}"}

    def report(self, error: BaseException) -> None:
        """Log an error that is no user's fault; called from any thread."""
        if isinstance(error, CutlayerError):
            self._well = False
        self.log.error("failed", **place_of(error))

    async def ready(self) -> bool:
        """Whether the server answers. After a failure it is asked again, at most once a second."""
        async with self._probing:
            if not self._well and time.monotonic() - self._probed > _PROBE_EVERY_S:
                with suppress(CutlayerError):
                    await asyncio.to_thread(self.session.probe)
                    self._well = True
                self._probed = time.monotonic()
            return self._well

    async def drain(self) -> None:
        """Let nobody in any more, and let answers in progress finish within the limit; then stop them."""
        self.pool.drain()
        try:
            async with asyncio.timeout(self.limits.grace_s):
                await self.pool.idle()
        except TimeoutError:
            for run in list(self._runs):
                run.cancel(ApiError.away("this gateway is shutting down"))

    async def close(self) -> None:
        """Close all sessions at the server."""
        self.pool.drain()
        for run in list(self._runs):
            run.cancel()
        try:
            async with asyncio.timeout(_LAST_STEP_S):
                await self.pool.idle()
        except TimeoutError:
            self.pool.abort()  # a server that does not answer must not keep this process
            await self.pool.idle()
        await asyncio.to_thread(self.pool.close)
        self._executor.shutdown(wait=False)


def owner_of(request: Request) -> str:
    """The API key's name."""
    owner: str = request.scope.get("state", {}).get("owner", _NO_NAME)
    return owner


def arrival_of(request: Request) -> float:
    """When the request came, on the monotonic clock."""
    arrival: float = request.scope.get("state", {}).get("arrival") or time.monotonic()
    return arrival


def note(request: Request, **facts: object) -> None:
    """Add to the request's log line. Counts and names of ours only."""
    request.scope.setdefault("state", {}).setdefault("facts", {}).update(facts)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Do `work` while the client stays connected; the body must have been read.

    Raises:
        ClientGoneError: it left. The work was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending


async def _begun(run: Run) -> Run:
    """Wait for its first event; being cancelled meanwhile ends it."""
    try:
        await run.begun.wait()
    except asyncio.CancelledError:
        run.cancel()
        raise
    return run


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ascii(text: str) -> str:
    """For a header."""
    return text.replace("–", "-").replace("ε", "epsilon").encode("ascii", "replace").decode()
