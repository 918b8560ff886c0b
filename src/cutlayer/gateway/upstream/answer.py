"""One answer of an engine, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.client.answer_text import AnswerText
from cutlayer.client.generation import Piece
from cutlayer.errors import CancelledError, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from cutlayer.client.generation import FinishReason, Request
    from cutlayer.client.logprobs import Logprobs
    from cutlayer.gateway.upstream.dialect import Ask, Dialect, Scoring, Token
    from cutlayer.gateway.upstream.host import Exchange
    from cutlayer.gateway.upstream.translation import Translation
    from cutlayer.text.tokenizer import Tokenizer


class UpstreamAnswer:
    """Iterate for pieces. See `cutlayer.gateway.served.Generating`.

    When this side has enough, or is cancelled, the connection ends, upon which engines stop generating.

    Args:
        request: what was asked for.
        ask: the same in the engine's ids.
        scoring: how to ask for log-probabilities of the prompt; None does not.
        dialect: the engine's.
        translation: the key's.
        tokenizer: turns ids into text.
        exchange: with the engine, for this answer alone.
    """

    def __init__(
        self,
        request: Request,
        ask: Ask,
        scoring: Scoring | None,
        dialect: Dialect,
        translation: Translation,
        tokenizer: Tokenizer,
        exchange: Exchange,
    ) -> None:
        self.token_ids: list[int] = []
        self.prompt_logprobs: list[Logprobs | None] = []
        self.reused = 0
        """Engines say it afterwards, if at all."""
        self.released = 0
        """Ids the engine was sent or chose."""
        self._request = request
        self._ask = ask
        self._scoring = scoring
        self._dialect = dialect
        self._translation = translation
        self._text = AnswerText(tokenizer, request.stop)
        self._exchange = exchange
        self._finish: FinishReason | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        return self._finish

    @property
    def hit_stop_string(self) -> bool:
        """Whether one of the request's stop strings ended it."""
        return self._text.cut_off

    def cancel(self) -> None:
        """Stop at once; from any thread."""
        self._exchange.break_off()

    def _run(self) -> Generator[Piece, None, None]:
        try:
            if self._scoring is not None:
                self._score(self._scoring)
            if self._request.max_tokens == 0:
                self._finish = "length"
                return
            self.released += len(self._ask.prompt)
            with self._exchange.events(*self._dialect.generation(self._ask)) as events:
                for delta in self._dialect.deltas(events):
                    for token in delta.tokens:
                        yield self._said(token)
                        if self._finish is not None:
                            return
                    if delta.finish is not None:
                        yield from self._ended(delta.finish)
                        return
            raise UpstreamError("the engine's stream ended before its answer did")
        except CancelledError:
            self._finish = "cancelled"

    def _score(self, scoring: Scoring) -> None:
        self.released += len(self._ask.prompt)
        scored = scoring.read(self._exchange.body(*scoring.call))
        self.prompt_logprobs = self._translation.prompt(scored, self._request)

    def _said(self, token: Token) -> Piece:
        """Take a token and the text it makes certain."""
        self._exchange.heard()
        plain, logprobs = self._translation.token(token, self._request.logprobs)
        self.token_ids.append(plain)
        self.released += 1
        if plain in self._request.stop_ids:
            self._finish = "stop"
        elif len(self.token_ids) == self._request.max_tokens:
            self._finish = "length"
        start, text = self._text.push(plain)
        if self._finish is not None:
            text += self._text.finish()
        if self._text.cut_off:
            self._finish = "stop"
        return Piece(plain, text, start, logprobs)

    def _ended(self, reason: FinishReason) -> Iterator[Piece]:
        """By the engine's own limits, not ours: text held back belongs to the last token."""
        rest = self._text.finish()
        self._finish = "stop" if self._text.cut_off else reason
        if rest:
            yield Piece(self.token_ids[-1], rest)
