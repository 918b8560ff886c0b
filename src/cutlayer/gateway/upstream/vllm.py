"""vLLM: `POST /v1/completions` with token ids, and ids in its answers (`return_token_ids`, from version 0.10.2).

Prompts with log-probabilities are scored by a request of their own: vLLM does not stream those.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from cutlayer.errors import UpstreamError
from cutlayer.gateway.upstream.dialect import About, Call, Delta, Id, Scoring, Token, decode, from_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cutlayer.gateway.upstream.dialect import Ask

_PATH: Final = "/v1/completions"
_ID: Final = re.compile(r"token_id:([0-9]{1,10})")


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class _Choice(msgspec.Struct):
    token_ids: list[Id] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


class _Likely(msgspec.Struct):
    logprob: float


class _ScoredChoice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _Likely] | None]
    prompt_token_ids: list[Id]


class _ScoredPrompt(msgspec.Struct):
    choices: Annotated[list[_ScoredChoice], msgspec.Meta(min_length=1)]


class Vllm:
    """See `cutlayer.gateway.upstream.dialect.Dialect`."""

    name = "vllm"

    def about(self, get: Callable[[str], bytes]) -> About:
        """See `Dialect`."""
        return from_models(get)

    def generation(self, ask: Ask) -> Call:
        """See `Dialect`."""
        body = self._body(ask) | {"max_tokens": ask.max_tokens, "stream": True}
        if ask.top is not None:
            body |= {"logprobs": ask.top, "return_tokens_as_token_ids": True}
        return Call(_PATH, body)

    def deltas(self, events: Iterator[bytes]) -> Iterator[Delta]:
        """See `Dialect`."""
        for data in events:
            for choice in decode(data, _Chunk).choices:
                ids = choice.token_ids or []
                tokens = [Token(token) for token in ids] if choice.logprobs is None else _tokens(ids, choice.logprobs)
                reason = choice.finish_reason
                yield Delta(tokens, None if reason is None else "length" if reason == "length" else "stop")

    def scoring(self, ask: Ask) -> Scoring:
        """See `Dialect`. One token is generated and thrown away: none at all is refused."""
        body = self._body(ask) | {"max_tokens": 1, "prompt_logprobs": ask.top or 0}
        return Scoring(Call(_PATH, body), _scored)

    def _body(self, ask: Ask) -> dict[str, Any]:
        chosen = ask.sampling
        body: dict[str, Any] = {
            "model": ask.model, "prompt": ask.prompt, "cache_salt": ask.salt, "return_token_ids": True,
            "add_special_tokens": False, "stop_token_ids": ask.stop_ids,
            "temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": chosen.top_k, "min_p": chosen.min_p,
            "repetition_penalty": chosen.repetition_penalty, "presence_penalty": chosen.presence_penalty,
            "frequency_penalty": chosen.frequency_penalty,
        }  # fmt: skip
        if chosen.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in chosen.logit_bias.items()}
        if chosen.seed is not None:
            body["seed"] = chosen.seed
        return body


def _tokens(ids: list[int], logprobs: _Logprobs) -> list[Token]:
    top = [{_id(name): value for name, value in (likely or {}).items()} for likely in logprobs.top_logprobs]
    if not len(ids) == len(logprobs.tokens) == len(logprobs.token_logprobs) == len(top):
        raise UpstreamError("the engine's log-probabilities are of another number of tokens than its answer")
    if [_id(name) for name in logprobs.tokens] != ids:
        raise UpstreamError("the engine's log-probabilities are of other tokens than its answer")
    return [
        Token(token, value, list(likely.items()))
        for token, value, likely in zip(ids, logprobs.token_logprobs, top, strict=True)
    ]


def _scored(body: bytes) -> list[Token | None]:
    choice = decode(body, _ScoredPrompt).choices[0]
    if len(choice.prompt_logprobs) != len(choice.prompt_token_ids):
        raise UpstreamError("the engine scored a prompt of another length")
    tokens: list[Token | None] = []
    for token, likely in zip(choice.prompt_token_ids, choice.prompt_logprobs, strict=True):
        if likely is not None and token not in likely:
            raise UpstreamError("the engine's log-probabilities are of other tokens than the prompt")
        top = {other: entry.logprob for other, entry in (likely or {}).items()}
        tokens.append(None if likely is None else Token(token, top[token], list(top.items())))
    return tokens


def _id(name: str) -> int:
    found = _ID.fullmatch(name)
    if found is None:
        raise UpstreamError("the engine names tokens where it was asked for ids; vLLM 0.10.2 or later is needed")
    return int(found[1])
