"""llama.cpp's server: `POST /completion` with token ids.

Its `/v1/completions` takes ids too, but gives ids back only among log-probabilities. Deviations from OpenAI's meaning: penalties
count the prompt's tokens as well; prompts have no log-probabilities; there are no stop ids beside those of the GGUF file, so
that the proxy ends an answer at the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from cutlayer.errors import UpstreamError
from cutlayer.gateway.upstream.dialect import About, Call, Delta, Id, Length, Name, Token, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cutlayer.gateway.upstream.dialect import Ask, Scoring

_RANDOM_SEED: Final = (1 << 32) - 1
"""What stands for "draw one": seeds are below."""


class _Settings(msgspec.Struct):
    n_ctx: Length


class _Properties(msgspec.Struct):
    default_generation_settings: _Settings
    model_alias: Name


class _Meta(msgspec.Struct):
    n_vocab: Annotated[int, msgspec.Meta(ge=1)]


class _Card(msgspec.Struct):
    meta: _Meta | None = None


class _Cards(msgspec.Struct):
    data: Annotated[list[_Card], msgspec.Meta(min_length=1)]


class _Likely(msgspec.Struct):
    id: Id
    logprob: float


class _Scored(msgspec.Struct):
    id: Id
    logprob: float
    top_logprobs: list[_Likely]


class _Event(msgspec.Struct):
    tokens: list[Id]
    stop: bool
    stop_type: Literal["none", "eos", "limit", "word"] = "none"
    completion_probabilities: list[_Scored] | None = None


class LlamaCpp:
    """See `cutlayer.gateway.upstream.dialect.Dialect`."""

    name = "llamacpp"

    def about(self, get: Callable[[str], bytes]) -> About:
        """See `Dialect`."""
        properties = decode(get("/props"), _Properties)
        meta = decode(get("/v1/models"), _Cards).data[0].meta
        return About(
            name=properties.model_alias,
            positions=properties.default_generation_settings.n_ctx,
            vocabulary=meta.n_vocab if meta is not None else None,
        )

    def generation(self, ask: Ask) -> Call:
        """See `Dialect`. What is not named has defaults that change answers, so everything is."""
        chosen = ask.sampling
        body = {
            "prompt": ask.prompt, "n_predict": ask.max_tokens, "stream": True, "return_tokens": True, "cache_prompt": True,
            "n_probs": 0 if ask.top is None else max(1, ask.top),
            "temperature": chosen.temperature, "top_k": chosen.top_k, "top_p": chosen.top_p, "min_p": chosen.min_p,
            "typical_p": 1, "repeat_last_n": len(ask.prompt) + ask.max_tokens, "repeat_penalty": chosen.repetition_penalty,
            "presence_penalty": chosen.presence_penalty, "frequency_penalty": chosen.frequency_penalty,
            "logit_bias": [[token, bias] for token, bias in chosen.logit_bias.items()],
        }  # fmt: skip
        if chosen.seed is not None:
            body["seed"] = chosen.seed % _RANDOM_SEED
        return Call("/completion", body)

    def deltas(self, events: Iterator[bytes]) -> Iterator[Delta]:
        """See `Dialect`."""
        for data in events:
            event = decode(data, _Event)
            if event.stop:  # a stream's last event repeats nothing
                yield Delta([], "length" if event.stop_type == "limit" else "stop")
            else:
                yield Delta(_tokens(event))

    def scoring(self, ask: Ask) -> Scoring | None:
        """See `Dialect`."""
        return None


def _tokens(event: _Event) -> list[Token]:
    scored = event.completion_probabilities
    if scored is None:
        return [Token(token) for token in event.tokens]
    if [one.id for one in scored] != event.tokens:
        raise UpstreamError("the engine's log-probabilities are of other tokens than its answer")
    return [Token(one.id, one.logprob, [(other.id, other.logprob) for other in one.top_logprobs]) for one in scored]
