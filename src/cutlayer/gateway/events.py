"""From a run to an answer: whole, or as a stream of server-sent events. Both generating endpoints come through here."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from cutlayer.gateway.problems import ApiError, ProblemAnswer
from cutlayer.gateway.run import Begun, Ended, Failed
from cutlayer.gateway.schema.answers import CachedTokens, Usage
from cutlayer.gateway.service import note, unless_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from cutlayer.gateway.run import Job, Run
    from cutlayer.gateway.service import Gateway

DONE: Final = {"data": "[DONE]"}
_SEND_S: Final = 60
"""A client that takes nothing for so long is gone."""


class EventStream(EventSourceResponse):
    """Ends the run with the stream, also when the client had left before it began.

    Args:
        events: what to send.
        started: what produces it, perhaps not yet.
        ping_s: seconds of silence after which a comment is sent.
        headers: of the answer.
        at_end: called when nothing more will be sent.
    """

    def __init__(
        self,
        events: AsyncIterator[dict[str, str]],
        started: asyncio.Future[Run],
        ping_s: float,
        headers: dict[str, str],
        at_end: Callable[[], None],
    ) -> None:
        super().__init__(events, sep="\n", ping=ping_s, headers=headers, send_timeout=_SEND_S)
        self._started = started
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            end(self._started)
            self._at_end()


class Answer(Protocol):
    """What an endpoint makes of a run's events."""

    @property
    def tally(self) -> Tally:
        """Tokens counted so far."""
        ...

    async def whole(self, run: Run) -> msgspec.Struct:
        """All of it.

        Raises:
            ApiError: the run failed.
        """
        ...

    def chunks(self, run: Run) -> AsyncIterator[dict[str, str]]:
        """As events of a stream."""
        ...


async def respond(gateway: Gateway, request: Request, jobs: Sequence[Job], answer: Answer, stream: bool) -> Response:
    """Generate, and answer whole or as a stream.

    A stream that fails before its first token still answers with a status code. If the first token takes so long that a ping
    is due, the headers go out without it.

    Raises:
        ApiError: it failed before anything was sent.
        ClientGoneError: nobody waits for it any more.
    """
    note(request, choices=len(jobs), prompt_tokens=answer.tally.usage().prompt_tokens, stream=stream)
    started = asyncio.ensure_future(gateway.start(request, jobs))
    handed_on = False
    try:
        if not stream:
            whole = await unless_gone(request, _whole(started, answer))
            note(request, completion_tokens=answer.tally.completion)
            return Response(
                msgspec.json.encode(whole), headers=gateway.ledger(started.result()), media_type="application/json"
            )
        await unless_gone(request, asyncio.wait([started], timeout=gateway.limits.ping_s))
        headers = {}
        if started.done():
            run = started.result()
            if isinstance(run.first, Failed):
                raise run.first.error
            headers = gateway.ledger(run)
        handed_on = True
    finally:
        if not handed_on:
            end(started)
    return EventStream(
        _chunks(started, answer),
        started,
        gateway.limits.ping_s,
        headers,
        lambda: note(request, completion_tokens=answer.tally.completion),
    )


def end(started: asyncio.Future[Run]) -> None:
    """Stop what was started, or is about to be."""
    if not started.done():
        started.cancel()
    elif not started.cancelled() and started.exception() is None:
        started.result().cancel()


async def _whole(started: asyncio.Future[Run], answer: Answer) -> msgspec.Struct:
    return await answer.whole(await started)


async def _chunks(started: asyncio.Future[Run], answer: Answer) -> AsyncIterator[dict[str, str]]:
    try:
        run = await started
    except ApiError as error:
        yield event(ProblemAnswer(error.problem))
        return
    async for chunk in answer.chunks(run):
        yield chunk


def event(content: msgspec.Struct) -> dict[str, str]:
    """One event."""
    return {"data": msgspec.json.encode(content).decode()}


class Tally:
    """Counts the tokens of one request.

    Args:
        jobs: its answers.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._reused: dict[int, int] = {}
        self.completion = 0

    def begun(self, event: Begun) -> None:
        """An answer has begun."""
        self._reused[event.index] = event.reused

    def ended(self, event: Ended) -> None:
        """An answer is complete."""
        self.completion += event.tokens

    def usage(self) -> Usage:
        """So far. A prompt counts once, however many answers it has, and is cached as far as it was for the first."""
        first: dict[int, Job] = {}
        for job in self._jobs:
            first.setdefault(id(job.prompt), job)
        prompt = sum(len(job.prompt) for job in first.values())
        cached = sum(self._reused.get(job.index, 0) for job in first.values())
        return Usage(prompt, self.completion, prompt + self.completion, CachedTokens(cached))


def labels(kind: str, model: str, fingerprint: str) -> dict[str, Any]:
    """What every answer and every chunk of one begins with.

    Args:
        kind: prefix of its id.
        model: as it is called here.
        fingerprint: of its weights.
    """
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }
