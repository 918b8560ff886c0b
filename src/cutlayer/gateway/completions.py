"""`POST /v1/completions`: plain continuation, and scoring of given text (`echo` with `logprobs`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cutlayer.errors import InputError
from cutlayer.gateway.body import Refusals
from cutlayer.gateway.events import DONE, Tally, event, labels, respond
from cutlayer.gateway.problems import ApiError, ProblemAnswer
from cutlayer.gateway.run import Begun, Ended, Failed, Job, Said
from cutlayer.gateway.schema.answers import Completion, CompletionChoice, CompletionLogprobs, FinishReason
from cutlayer.gateway.schema.completion import DEFAULT_TOKENS, HARMLESS, REFUSED, CompletionRequest
from cutlayer.gateway.trail import Trail, for_completion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from cutlayer.client.generation import Piece
    from cutlayer.client.logprobs import Logprobs
    from cutlayer.gateway.run import Run
    from cutlayer.gateway.service import Gateway

_REFUSALS: Final = Refusals(REFUSED, HARMLESS)


async def completions(gateway: Gateway, request: Request) -> Response:
    """Continue texts, whole or as a stream."""
    asked = await gateway.read(request, CompletionRequest, _REFUSALS)
    asked.check()
    gateway.check_model(asked.model)
    jobs = await asyncio.to_thread(_jobs, gateway, asked)
    return await respond(gateway, request, jobs, _Answer(gateway, asked, jobs), bool(asked.stream))


def _jobs(gateway: Gateway, asked: CompletionRequest) -> list[Job]:
    """One per prompt and choice. Blocks: tokenises."""
    gateway.check_bias(asked.logit_bias)
    jobs: list[Job] = []
    for given in asked.prompts():
        prompt = given if isinstance(given, list) else _encode(gateway, given)
        gateway.check_prompt(prompt, "prompt")
        jobs += [
            Job(
                index=len(jobs) + choice,
                prompt=prompt,
                max_tokens=DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens,
                sampling=asked.sampling(choice),
                stop=asked.stops(),
                logprobs=asked.logprobs,
                # With nothing to generate the prompt is still run, which is all that such a request can be about.
                prompt_logprobs=bool(asked.echo) and (asked.logprobs is not None or asked.max_tokens == 0),
            )
            for choice in range(asked.n or 1)
        ]
    return jobs


def _encode(gateway: Gateway, text: str) -> list[int]:
    try:
        return gateway.tokenizer.encode(text)
    except InputError:
        raise ApiError.bad("the prompt is empty; give at least one token", "prompt") from None


class _Answer:
    """Events of a run, put together.

    Args:
        gateway: whose.
        asked: the request.
        jobs: made of it.
    """

    def __init__(self, gateway: Gateway, asked: CompletionRequest, jobs: list[Job]) -> None:
        self.tally = Tally(jobs)
        self._tokenizer = gateway.tokenizer
        self._asked = asked
        self._jobs = jobs
        self._texts = [text for text in asked.prompts() for _ in range(asked.n or 1)]
        self._labels: dict[str, Any] = labels("cmpl", gateway.model, gateway.fingerprint)
        # The token that ends an answer is listed too, as OpenAI has it: programs that score prompts with one token to
        # generate drop the last entry, whatever it is.
        self._trails = [Trail(frozenset()) for _ in jobs]
        self._offsets = [0] * len(jobs)
        """Where an answer begins in its choice's text: after the prompt, if that is given back."""

    async def whole(self, run: Run) -> Completion:
        """All of it."""
        parts: list[list[CompletionChoice]] = [[] for _ in self._jobs]
        async for happened in run.events():
            if isinstance(happened, Failed):
                raise happened.error
            parts[happened.index].append(self._take(happened))
        choices = [_joined(part) for part in parts]
        return Completion(**self._labels, choices=choices, usage=self.tally.usage())

    async def chunks(self, run: Run) -> AsyncIterator[dict[str, str]]:
        """As events of a stream."""
        usage = None if self._asked.wants_usage else msgspec.UNSET
        async for happened in run.events():
            if isinstance(happened, Failed):
                yield event(ProblemAnswer(happened.error.problem))
                return
            choice = self._take(happened)
            if choice.text or choice.finish_reason or (choice.logprobs and choice.logprobs.tokens):
                yield event(Completion(**self._labels, choices=[choice], usage=usage))
        if self._asked.wants_usage:
            yield event(Completion(**self._labels, choices=[], usage=self.tally.usage()))
        yield DONE

    def _take(self, happened: Begun | Said | Ended) -> CompletionChoice:
        """What an event adds to its choice."""
        index = happened.index
        match happened:
            case Begun():
                self.tally.begun(happened)
                text, logprobs = self._echo(index, happened.prompt_logprobs) if self._asked.echo else ("", None)
                self._offsets[index] = len(text)
                return CompletionChoice(index, text, logprobs, None)
            case Said(_, piece):
                return CompletionChoice(index, piece.text, self._logprobs(index, self._trails[index].push(piece)), None)
            case Ended(_, reason, cut_off):
                self.tally.ended(happened)
                finish: FinishReason = "length" if reason == "length" else "stop"
                rest = self._trails[index].finish(cut_off)
                return CompletionChoice(index, "", self._logprobs(index, rest), finish)

    def _echo(self, index: int, entries: list[Logprobs | None]) -> tuple[str, CompletionLogprobs | None]:
        """The prompt's text and tokens."""
        given, ids = self._texts[index], self._jobs[index].prompt
        text = given if isinstance(given, str) else self._tokenizer.decode(ids)
        if self._asked.logprobs is None:
            return text, None
        stream, starts, at = self._tokenizer.stream(), [], 0
        for token in ids:
            starts.append(at)
            at += len(stream.push(token))
        return text, for_completion(ids, entries, starts, self._tokenizer)

    def _logprobs(self, index: int, pieces: list[Piece]) -> CompletionLogprobs | None:
        if self._asked.logprobs is None:
            return None
        offset = self._offsets[index]
        return for_completion(
            [piece.token for piece in pieces],
            [piece.logprobs for piece in pieces],
            [offset + piece.start for piece in pieces],
            self._tokenizer,
        )


def _joined(parts: list[CompletionChoice]) -> CompletionChoice:
    """A choice from what its events added; the last one has the reason why it ended."""
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    whole = (
        CompletionLogprobs(
            [token for part in logprobs for token in part.tokens],
            [value for part in logprobs for value in part.token_logprobs],
            [top for part in logprobs for top in part.top_logprobs],
            [at for part in logprobs for at in part.text_offset],
        )
        if logprobs
        else None
    )
    return CompletionChoice(parts[-1].index, "".join(part.text for part in parts), whole, parts[-1].finish_reason)
