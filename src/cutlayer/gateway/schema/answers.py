"""What is answered."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]


class CachedTokens(msgspec.Struct):
    """Of the prompt's tokens, those whose positions the session held already."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens of all prompts and all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(msgspec.Struct):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int] | None
    """UTF-8; null when the token is part of a character."""


class TokenLogprob(msgspec.Struct):
    """A token that came."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Of the model's own distribution, before temperature, penalties, bias and schema."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct):
    """The answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, kw_only=True):
    """Of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    """Of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str


class CompletionLogprobs(msgspec.Struct):
    """Token by token; null for a prompt's first, before which there is nothing."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters."""


class CompletionChoice(msgspec.Struct):
    """One of `n` continuations of one prompt; number `prompt · n + choice`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct, kw_only=True):
    """Of `/v1/completions`, and an event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str


class Prefilled(msgspec.Struct, kw_only=True):
    """Of `/v1/prefill`."""

    object: Literal["prefill"] = "prefill"
    model: str
    prompt_tokens: int
    """Tokens that are certain, however the conversation's last message goes on. The session holds them now."""
    cached_tokens: int
    """Of these, tokens that it held before."""


class Model(msgspec.Struct, kw_only=True):
    """What may be asked for as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["cutlayer"] = "cutlayer"
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(msgspec.Struct):
    """Of `/v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class Tokens(msgspec.Struct):
    """Of `/v1/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(msgspec.Struct):
    """Of `/v1/detokenize`."""

    prompt: str


class Status(msgspec.Struct):
    """Of `/health` and `/ready`."""

    status: str
