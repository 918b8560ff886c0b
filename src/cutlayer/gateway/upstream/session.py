"""A session with an engine: nothing but the salt its prompts are cached under, and what was said last."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cutlayer.client.generation import Request
from cutlayer.errors import InputError
from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.upstream.answer import UpstreamAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cutlayer.client.sampling import Sampling, TokenMask
    from cutlayer.gateway.upstream.dialect import About, Dialect
    from cutlayer.gateway.upstream.host import Host
    from cutlayer.gateway.upstream.translation import Translation
    from cutlayer.text.tokenizer import Tokenizer

_SALT_BYTES: Final = 8


class NoSchemas:
    """See `cutlayer.gateway.served.Schemas`. An engine would have to be told the schema, or the tokens each step allows."""

    def compile(self, schema: Mapping[str, Any]) -> NoReturn:
        """Refuse."""
        raise ApiError.bad(
            "the host chooses the tokens and is told no schema, which is text; ask for JSON in the prompt",
            "response_format",
        )


class UpstreamSession:
    """See `cutlayer.gateway.served.Session`.

    Args:
        host: where the engine is.
        dialect: the engine's.
        translation: the key's.
        tokenizer: the model's.
        stop_ids: ids that end an answer.
        positions: prompt and answer together have no more.
    """

    def __init__(
        self,
        host: Host,
        dialect: Dialect,
        translation: Translation,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        positions: int,
    ) -> None:
        self._host = host
        self._dialect = dialect
        self._translation = translation
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._positions = positions
        # One per session, and so per API key: a warm cache shows in the time of the first token.
        self._salt = secrets.token_hex(_SALT_BYTES)
        self._prompt: list[int] = []
        self._answer: UpstreamAnswer | None = None
        self._released = 0

    @property
    def held(self) -> Sequence[int]:
        """See `Session`: what the engine's cache is likely to have."""
        return [*self._prompt, *self._answer.token_ids] if self._answer is not None else []

    @property
    def released(self) -> int:
        """Ids the engine was sent or chose."""
        return self._released + (self._answer.released if self._answer is not None else 0)

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        logprobs: int | None,
        prompt_logprobs: bool,
        mask: TokenMask | None,
    ) -> UpstreamAnswer:
        """See `Session`.

        Raises:
            InputError: a mask, which only who chooses the tokens can keep to; log-probabilities that this engine does not have.
        """
        if mask is not None:
            raise InputError("the engine chooses the tokens; no mask reaches it")
        request = Request(
            prompt=list(prompt),
            max_tokens=min(max_tokens, self._positions - len(prompt)),
            stop_ids=self._stop_ids,
            stop=tuple(stop),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        ask = self._translation.ask(request, sampling, self._salt)
        scoring = self._dialect.scoring(ask) if prompt_logprobs else None
        if prompt_logprobs and scoring is None:
            raise InputError(
                f"{self._dialect.name} has no log-probabilities of prompts; ask without 'echo' or 'logprobs'"
            )
        self._released, self._prompt = self.released, request.prompt
        self._answer = UpstreamAnswer(
            request, ask, scoring, self._dialect, self._translation, self._tokenizer, self._host.exchange()
        )
        return self._answer

    def prefill(self, prompt: Sequence[int]) -> NoReturn:
        """Refuse.

        A split session holds what it was sent, and kilobytes of hidden states per token travel early. An engine is sent
        a few bytes per token, all of them each time, and its cache mostly has the earlier turns: there is little to gain. And
        there is something to lose, for every stage of the typing would go out as permuted ids, from whose frequencies the
        permutation is read.

        Raises:
            InputError: always.
        """
        raise InputError(
            "no prompt is sent to an obfuscated upstream before it is complete: its session holds nothing that a later one could "
            "do without; leave hints out"
        )

    def another(self) -> UpstreamSession:
        """See `Session`."""
        return UpstreamSession(
            self._host, self._dialect, self._translation, self._tokenizer, self._stop_ids, self._positions
        )

    def probe(self) -> About:
        """See `Session`."""
        return self._dialect.about(self._host.exchange().body)

    def abort(self) -> None:
        """See `Session`."""
        if self._answer is not None:
            self._answer.cancel()

    def close(self) -> None:
        """See `Session`: there is nothing at the engine to be freed."""
