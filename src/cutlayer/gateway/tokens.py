"""`/v1/tokenize` and `/v1/detokenize`: what a prompt is to the model, without sending anything to the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
from starlette.responses import Response

from cutlayer.errors import InputError
from cutlayer.gateway.body import NOTHING_REFUSED
from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.schema.answers import Detokenized, Tokens
from cutlayer.gateway.schema.chat import Turn

if TYPE_CHECKING:
    from starlette.requests import Request

    from cutlayer.gateway.service import Gateway


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Give `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1, max_length=10_000)] | None = None
    """Put through the chat template, ready for the answer."""
    add_special_tokens: bool = True
    """For `prompt`: as `/v1/completions` would send it."""
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


async def tokenize(gateway: Gateway, request: Request) -> Response:
    """Token ids of a text or a conversation."""
    asked = await gateway.read(request, TokenizeRequest, NOTHING_REFUSED)
    if asked.model is not None:
        gateway.check_model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError.bad("give either 'prompt' or 'messages'", "prompt")
    ids = await asyncio.to_thread(_encode, gateway, asked)
    names = gateway.tokenizer.pieces(ids) if asked.return_token_strs else None
    answer = Tokens(ids, len(ids), gateway.max_positions, names)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def detokenize(gateway: Gateway, request: Request) -> Response:
    """Text of token ids, special tokens left out."""
    asked = await gateway.read(request, DetokenizeRequest, NOTHING_REFUSED)
    if asked.model is not None:
        gateway.check_model(asked.model)
    if not all(0 <= token < gateway.vocabulary for token in asked.tokens):
        raise ApiError.bad(f"a token id is outside the vocabulary of {gateway.vocabulary}", "tokens")
    text = await asyncio.to_thread(gateway.tokenizer.decode, asked.tokens)
    return Response(msgspec.json.encode(Detokenized(text)), media_type="application/json")


def _encode(gateway: Gateway, asked: TokenizeRequest) -> list[int]:
    try:
        if asked.messages is not None:
            return gateway.tokenizer.render([turn.message() for turn in asked.messages])
        return gateway.tokenizer.encode(asked.prompt, asked.add_special_tokens) if asked.prompt else []
    except InputError:
        raise ApiError.bad("the model's tokenizer or chat template refuses this", "messages") from None
