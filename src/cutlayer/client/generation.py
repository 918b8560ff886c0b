"""One answer: an iterator of pieces of text, and the account of what it took.

generation = client.generate("…")
for piece in generation:
    print(piece.text, end="")
generation.result()
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from cutlayer.client.answer_text import AnswerText
from cutlayer.client.logprobs import Logprobs, PromptLogprobs, logprobs_of
from cutlayer.client.speculation.draft import ROOT, Draft
from cutlayer.errors import CancelledError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    import torch

    from cutlayer.client.decoder import Decoder, StepTiming
    from cutlayer.client.remote import Traffic
    from cutlayer.client.sampling import Sampler
    from cutlayer.client.speculation.drafting import Drafting
    from cutlayer.client.speculation.speculator import Verified
    from cutlayer.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class Piece(msgspec.Struct, frozen=True):
    """What one token added."""

    token: int
    text: str
    """Possibly empty: a token may end inside a character or begin a stop string."""
    start: int = 0
    """Where the token begins in the answer's text, in characters."""
    logprobs: Logprobs | None = None
    """When asked for."""


class Bytes(msgspec.Struct, frozen=True):
    """Bytes of protocol messages."""

    sent: int
    received: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished answer."""

    text: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    """Tokens of the answer, an ending special token included."""
    finish_reason: FinishReason
    steps: int
    """Round trips after the prefill."""
    guessed: int
    """Tokens that were sent on a guess; those that were right saved a round trip each."""
    timings_ms: dict[str, float]
    """``prefill``, ``decode``, ``total``, and of the decode: ``client`` and ``server`` model time, ``draft`` for guessing."""
    bytes: Bytes
    resumes: int
    """Lost connections recovered on the way."""
    defence: str
    cut: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate, already in token ids."""

    prompt: list[int]
    max_tokens: int
    """0 asks for no answer: the prompt is sent as far as the session lacks it."""
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each token of the answer; None reports nothing."""
    prompt_logprobs: bool = False
    """Report the prompt's tokens too, with as many. The prompt is then sent whole, whatever the session holds."""

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise InputError(f"max tokens must not be negative, as {self.max_tokens} is")
        if any(not text for text in self.stop):
            raise InputError("a stop string must not be empty")


class Generation:
    """Iterate for pieces; `result` finishes and accounts. Closing early cancels: nothing more is sent. So does `cancel`, which
    may be called from another thread.

    Args:
        request: what to generate.
        decoder: the session it runs in.
        sampler: chooses tokens.
        tokenizer: turns ids into text.
        traffic: the session's byte counters.
        drafting: guesses at the next tokens; None sends one token at a time.
        labels: ``defence`` and ``cut`` for the result.
    """

    def __init__(
        self,
        request: Request,
        decoder: Decoder,
        sampler: Sampler,
        tokenizer: Tokenizer,
        traffic: Traffic,
        drafting: Drafting | None,
        labels: dict[str, str],
    ) -> None:
        self.token_ids: list[int] = []
        self.timings: list[StepTiming] = []
        """One per round trip, the prefill first."""
        self.prompt_logprobs: list[Logprobs | None] = []
        """One per token of the prompt, None for the first; once the first piece has come, when asked for."""
        self.reused = 0
        """Tokens of the prompt whose positions the session held already; known once the first piece has come."""
        self._cancelled = threading.Event()
        self._request = request
        self._decoder = decoder
        self._sampler = sampler
        self._text = AnswerText(tokenizer, request.stop)
        self._traffic = traffic
        self._drafting = drafting
        self._drafted_before = drafting.seconds if drafting else 0.0
        self._said = [*request.prompt]
        """Prompt and answer so far."""
        self._before = msgspec.structs.replace(traffic)
        self._labels = labels
        self._texts: list[str] = []
        self._finish: FinishReason | None = None
        self._started = time.perf_counter()
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def close(self) -> None:
        """Stop here."""
        self._pieces.close()
        self._finish = self._finish or "cancelled"

    def cancel(self) -> None:
        """Have the thread that iterates stop after the step it is in, and within a long prompt after the chunk it is at."""
        self._cancelled.set()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        return self._finish

    @property
    def hit_stop_string(self) -> bool:
        """Whether one of the request's stop strings ended it, and not a token of the model's."""
        return self._text.cut_off

    def result(self) -> Result:
        """Finish what is left and return the account."""
        for _ in self._pieces:
            pass
        prefill, decode = self.timings[:1], self.timings[1:]
        return Result(
            text="".join(self._texts),
            prompt_token_ids=self._request.prompt,
            token_ids=self.token_ids,
            finish_reason=self._finish or "cancelled",
            steps=len(decode),
            guessed=sum(step.sent - 1 for step in decode),
            timings_ms={
                "prefill": _ms(sum(step.total for step in prefill)),
                "decode": _ms(sum(step.total for step in decode)),
                "client": _ms(sum(step.client for step in decode)),
                "server": _ms(sum(step.server for step in decode)),
                "draft": _ms(self._drafting.seconds - self._drafted_before if self._drafting else 0.0),
                "total": _ms(time.perf_counter() - self._started),
            },
            bytes=Bytes(self._traffic.sent - self._before.sent, self._traffic.received - self._before.received),
            resumes=self._traffic.resumes - self._before.resumes,
            defence=self._labels["defence"],
            cut=self._labels["cut"],
        )

    def _run(self) -> Generator[Piece, None, None]:
        try:
            first = self._prefill()  # [V]
            if first is None or self._request.max_tokens == 0:
                self._finish = "length"
            else:
                yield self._next(first)
            while self._finish is None:
                if self._cancelled.is_set():
                    raise CancelledError("the answer was cancelled")
                draft, now = self._guess()
                self._decoder.verify(self.token_ids[-1], draft, now, cancelled=self._cancelled.is_set)
                yield from self._walk(draft)
        except CancelledError:
            self._finish = "cancelled"

    def _prefill(self) -> torch.Tensor | None:
        """Send what the session lacks of the prompt; logits [V] after it. None if it lacks nothing and no token is to follow."""
        request, decoder = self._request, self._decoder
        takers: list[Callable[[Verified], None]] = []
        if request.prompt_logprobs:
            decoder.rollback(0)  # positions already held give no logits
            collected = PromptLogprobs(request.prompt, request.logprobs or 0)
            self.prompt_logprobs = collected.entries
            takers.append(collected.take)
        if self._drafting is not None and self._drafting.wants_prompt:
            takers.append(self._drafting.observe)
        rest = decoder.reuse(request.prompt, least=min(1, request.max_tokens))
        self.reused = len(request.prompt) - len(rest)
        if not rest:
            return None
        logits = decoder.extend(rest, every=_all(takers), cancelled=self._cancelled.is_set)
        self._took()
        return logits

    def _walk(self, draft: Draft) -> Generator[Piece, None, None]:
        """Choose tokens as long as they were guessed."""
        node, kept = ROOT, [0]
        try:
            while self._finish is None:
                piece = self._next(self._decoder.logits(node + 1), draft.drawn(node))
                guess = draft.child(node, piece.token)
                if guess is not None:
                    kept.append(guess + 1)
                yield piece
                if guess is None:
                    return
                node = guess
        finally:
            if self._decoder.verifying:  # it did not fail
                seen = self._decoder.keep(kept)
                self._took()
                if self._drafting is not None:
                    self._drafting.observe(seen)

    def _guess(self) -> tuple[Draft, int]:
        """A draft, and how much of it to wait for."""
        if self._drafting is None:
            return Draft(), 0
        most = min(self._decoder.room, self._decoder.widest) - 1
        return self._drafting.draft(self._said, most, depth=self._request.max_tokens - len(self.token_ids) - 1)

    def _took(self) -> None:
        timing = self._decoder.last_timing
        self.timings.append(timing)
        if self._drafting is not None:
            self._drafting.took(timing)

    def _next(self, logits: torch.Tensor, drawn: Sequence[tuple[int, torch.Tensor]] = ()) -> Piece:
        """Choose a token and take the text it makes certain."""
        request = self._request
        token = self._sampler.choose(logits, self._said, self.token_ids, drawn)
        likely = None if request.logprobs is None else logprobs_of(logits, token, request.logprobs)
        self.token_ids.append(token)
        self._said.append(token)
        if token in request.stop_ids:
            self._finish = "stop"
        elif len(self.token_ids) == request.max_tokens or len(self._said) > self._decoder.capacity:
            self._finish = "length"
        start, text = self._text.push(token)
        if self._finish is not None:
            text += self._text.finish()
        if self._text.cut_off:
            self._finish = "stop"
        self._texts.append(text)
        return Piece(token, text, start, likely)


def _all(takers: Sequence[Callable[[Verified], None]]) -> Callable[[Verified], None] | None:
    """One taker that hands on to all; None if there are none."""
    if not takers:
        return None

    def take(chunk: Verified) -> None:
        for taker in takers:
            taker(chunk)

    return take


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
