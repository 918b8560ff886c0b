"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cutlayer.errors import InputError
from cutlayer.gateway.body import Refusals
from cutlayer.gateway.events import DONE, Tally, event, labels, respond
from cutlayer.gateway.grammar import ANY_OBJECT
from cutlayer.gateway.problems import ApiError, ProblemAnswer
from cutlayer.gateway.run import Begun, Ended, Failed, Job, Said
from cutlayer.gateway.schema.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
    FinishReason,
)
from cutlayer.gateway.schema.chat import HARMLESS, REFUSED, ChatRequest, JsonObject, JsonSchema
from cutlayer.gateway.trail import Trail, for_chat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from cutlayer.client.generation import Piece
    from cutlayer.client.sampling import TokenMask
    from cutlayer.gateway.run import Run
    from cutlayer.gateway.service import Gateway

_REFUSALS: Final = Refusals(REFUSED, HARMLESS)


async def chat(gateway: Gateway, request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    asked = await gateway.read(request, ChatRequest, _REFUSALS)
    asked.check()
    gateway.check_model(asked.model)
    jobs = await asyncio.to_thread(_jobs, gateway, asked)
    return await respond(gateway, request, jobs, _Answer(gateway, asked, jobs), bool(asked.stream))


def _jobs(gateway: Gateway, asked: ChatRequest) -> list[Job]:
    """One per choice. Blocks: tokenises, and compiles the schema."""
    try:
        prompt = gateway.tokenizer.render([turn.message() for turn in asked.messages])
    except InputError:
        raise ApiError.conversation() from None
    gateway.check_prompt(prompt, "messages")
    gateway.check_bias(asked.logit_bias)
    mask = _mask(gateway, asked)
    return [
        Job(
            index=choice,
            prompt=prompt,
            max_tokens=asked.longest or gateway.limits.max_tokens,
            sampling=asked.sampling(choice),
            stop=asked.stops(),
            logprobs=asked.top,
            mask=mask,
        )
        for choice in range(asked.n or 1)
    ]


def _mask(gateway: Gateway, asked: ChatRequest) -> Callable[[], TokenMask] | None:
    wanted = asked.response_format
    if isinstance(wanted, JsonObject):
        return gateway.schemas.compile(ANY_OBJECT)
    if isinstance(wanted, JsonSchema):
        return gateway.schemas.compile(wanted.json_schema.schema or ANY_OBJECT)
    return None


class _Answer:
    """Events of a run, put together.

    Args:
        gateway: whose.
        asked: the request.
        jobs: made of it.
    """

    def __init__(self, gateway: Gateway, asked: ChatRequest, jobs: list[Job]) -> None:
        self.tally = Tally(jobs)
        self._gateway = gateway
        self._asked = asked
        self._jobs = jobs
        self._labels: dict[str, Any] = labels("chatcmpl", gateway.model, gateway.fingerprint)
        self._trails = [Trail(gateway.tokenizer.stop_ids) for _ in jobs]

    async def whole(self, run: Run) -> ChatCompletion:
        """All of it."""
        texts: list[list[str]] = [[] for _ in self._jobs]
        shown: list[list[Piece]] = [[] for _ in self._jobs]
        choices: list[ChatChoice] = []
        async for happened in run.events():
            match happened:
                case Failed():
                    raise happened.error
                case Begun():
                    self.tally.begun(happened)
                case Said(index, piece):
                    texts[index].append(piece.text)
                    shown[index] += self._trails[index].push(piece)
                case Ended(index, reason, cut_off):
                    self.tally.ended(happened)
                    text = "".join(texts[index])
                    shown[index] += self._trails[index].finish(cut_off)
                    finish: FinishReason = "length" if reason == "length" else "stop"
                    choices.append(
                        ChatChoice(index, AssistantMessage(text), self._logprobs(shown[index], True), finish)
                    )
        return ChatCompletion(**self._labels, choices=choices, usage=self.tally.usage())

    async def chunks(self, run: Run) -> AsyncIterator[dict[str, str]]:
        """As events of a stream."""
        async for happened in run.events():
            match happened:
                case Failed():
                    yield event(ProblemAnswer(happened.error.problem))
                    return
                case Begun(index):
                    self.tally.begun(happened)
                    yield self._chunk(ChatChunkChoice(index, Delta("assistant", "")))
                case Said(index, piece):
                    shown = self._trails[index].push(piece)
                    if piece.text or shown:
                        yield self._chunk(ChatChunkChoice(index, Delta(content=piece.text), self._logprobs(shown)))
                case Ended(index, reason, cut_off):
                    self.tally.ended(happened)
                    finish: FinishReason = "length" if reason == "length" else "stop"
                    rest = self._logprobs(self._trails[index].finish(cut_off))
                    yield self._chunk(ChatChunkChoice(index, Delta(), rest, finish))
        if self._asked.wants_usage:
            yield event(ChatChunk(**self._labels, choices=[], usage=self.tally.usage()))
        yield DONE

    def _chunk(self, choice: ChatChunkChoice) -> dict[str, str]:
        usage = None if self._asked.wants_usage else msgspec.UNSET
        return event(ChatChunk(**self._labels, choices=[choice], usage=usage))

    def _logprobs(self, pieces: list[Piece], even_none: bool = False) -> ChatLogprobs | None:
        if self._asked.top is None or not (pieces or even_none):
            return None
        return ChatLogprobs(
            for_chat([piece.logprobs for piece in pieces if piece.logprobs is not None], self._gateway.tokenizer)
        )
