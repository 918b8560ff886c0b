"""SGLang: `POST /generate` with token ids.

Its streams repeat the answer so far in every event, or, as the server was started, give what is new; the count of tokens tells
how many of the last ones are. A seed is honoured only by servers started with `--enable-deterministic-inference`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from cutlayer.errors import UpstreamError
from cutlayer.gateway.upstream.dialect import About, Call, Delta, Id, Scoring, Token, decode, from_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cutlayer.gateway.upstream.dialect import Ask

_PATH: Final = "/generate"
_EVERY: Final = -1

_Scored = tuple[float | None, Id, str | None]
"""Log-probability, id, and text, which is passed over."""


class _Finish(msgspec.Struct):
    type: str


class _Meta(msgspec.Struct):
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)]
    finish_reason: _Finish | None = None
    output_token_logprobs: list[_Scored] | None = None
    output_top_logprobs: list[list[_Scored] | None] | None = None


class _Event(msgspec.Struct):
    output_ids: list[Id]
    meta_info: _Meta


class _PromptMeta(msgspec.Struct):
    input_token_logprobs: list[_Scored]
    input_top_logprobs: list[list[_Scored] | None] | None = None


class _ScoredPrompt(msgspec.Struct):
    meta_info: _PromptMeta


class SgLang:
    """See `cutlayer.gateway.upstream.dialect.Dialect`."""

    name = "sglang"

    def about(self, get: Callable[[str], bytes]) -> About:
        """See `Dialect`."""
        return from_models(get)

    def generation(self, ask: Ask) -> Call:
        """See `Dialect`."""
        body = self._body(ask, ask.max_tokens) | {"stream": True}
        if ask.top is not None:
            body |= {"return_logprob": True, "top_logprobs_num": ask.top}
        return Call(_PATH, body)

    def deltas(self, events: Iterator[bytes]) -> Iterator[Delta]:
        """See `Dialect`."""
        given = 0
        for data in events:
            event = decode(data, _Event)
            meta = event.meta_info
            new = meta.completion_tokens - given
            if not 0 <= new <= len(event.output_ids):
                raise UpstreamError("the engine's events do not add up to the number of tokens it states")
            given = meta.completion_tokens
            ids = event.output_ids[len(event.output_ids) - new :]
            scored = meta.output_token_logprobs
            tokens = (
                [Token(token) for token in ids] if scored is None else _tokens(ids, scored, meta.output_top_logprobs)
            )
            reason = meta.finish_reason
            if reason is not None and reason.type == "abort":
                raise UpstreamError("the engine gave the answer up")
            yield Delta(tokens, None if reason is None else "length" if reason.type == "length" else "stop")

    def scoring(self, ask: Ask) -> Scoring:
        """See `Dialect`. One token is generated and thrown away."""
        wanted = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": ask.top or 0}
        return Scoring(Call(_PATH, self._body(ask, 1) | wanted), _scored)

    def _body(self, ask: Ask, tokens: int) -> dict[str, Any]:
        chosen = ask.sampling
        settings: dict[str, Any] = {
            "max_new_tokens": tokens, "stop_token_ids": ask.stop_ids,
            "temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": chosen.top_k or _EVERY, "min_p": chosen.min_p,
            "repetition_penalty": chosen.repetition_penalty, "presence_penalty": chosen.presence_penalty,
            "frequency_penalty": chosen.frequency_penalty,
        }  # fmt: skip
        if chosen.logit_bias:
            settings["logit_bias"] = {str(token): bias for token, bias in chosen.logit_bias.items()}
        if chosen.seed is not None:
            settings["sampling_seed"] = chosen.seed
        return {"input_ids": ask.prompt, "sampling_params": settings}


def _scored(body: bytes) -> list[Token | None]:
    meta = decode(body, _ScoredPrompt).meta_info
    ids = [token for _, token, _ in meta.input_token_logprobs]
    return [None, *_tokens(ids, meta.input_token_logprobs, meta.input_top_logprobs)[1:]]


def _tokens(ids: list[int], scored: list[_Scored], top: list[list[_Scored] | None] | None) -> list[Token]:
    """Those of the last `ids`, however many came before."""
    likely: list[list[_Scored] | None] = [None] * len(ids) if top is None else top[max(0, len(top) - len(ids)) :]
    entries = scored[max(0, len(scored) - len(ids)) :]
    if [token for _, token, _ in entries] != ids or len(likely) != len(ids):
        raise UpstreamError("the engine's log-probabilities are of other tokens than its answer")
    return [
        Token(token, value, [(other, others) for others, other, _ in tops or () if others is not None])
        for (value, token, _), tops in zip(entries, likely, strict=True)
    ]
