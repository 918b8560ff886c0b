"""`POST /v1/prefill`: a hint that a conversation is being typed, so that the prompt is on the server before it is asked.

What is certain of the prompt is sent as far as the session lacks it, and nothing is generated. The next answer of the
conversation finds the session that holds most of it. What is deleted again is rolled back, and has been sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from cutlayer.errors import InputError
from cutlayer.gateway.body import NOTHING_REFUSED
from cutlayer.gateway.events import end
from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.run import Begun, Failed, Prefill
from cutlayer.gateway.schema.answers import Prefilled
from cutlayer.gateway.schema.prefill import PrefillRequest
from cutlayer.gateway.service import note, unless_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from cutlayer.gateway.run import Run
    from cutlayer.gateway.service import Gateway


async def prefill(gateway: Gateway, request: Request) -> Response:
    """Send what is certain of a conversation."""
    asked = await gateway.read(request, PrefillRequest, NOTHING_REFUSED)
    if asked.model is not None:
        gateway.check_model(asked.model)
    prompt = await asyncio.to_thread(_certain, gateway, asked)
    note(request, prompt_tokens=len(prompt))
    started = asyncio.ensure_future(gateway.hint(request, Prefill(prompt=prompt)))
    try:
        reused = await unless_gone(request, _reused(started))
    finally:
        end(started)
    note(request, cached_tokens=reused)
    answer = Prefilled(model=gateway.model, prompt_tokens=len(prompt), cached_tokens=reused)
    return Response(
        msgspec.json.encode(answer), headers=gateway.ledger(started.result()), media_type="application/json"
    )


def _certain(gateway: Gateway, asked: PrefillRequest) -> list[int]:
    """Blocks: tokenises."""
    try:
        prompt = gateway.tokenizer.certain([turn.message() for turn in asked.messages])
    except InputError:
        raise ApiError.conversation() from None
    gateway.check_prompt(prompt, "messages")
    return prompt


async def _reused(started: asyncio.Future[Run]) -> int:
    """Tokens that were held already, once the session has been given back."""
    reused = 0
    async for happened in (await started).events():
        match happened:
            case Failed(error):
                raise error
            case Begun():
                reused = happened.reused
    return reused
