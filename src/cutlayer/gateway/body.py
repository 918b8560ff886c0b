"""Reading a request's body: bounded in size and time, then checked against its type.

msgspec's own messages may quote a value, so only the path and the expected type of each are passed on.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect

from cutlayer.gateway.problems import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")

_WHERE: Final = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[A-Za-z0-9_.\[\]]*)`$")
_PLAIN: Final = re.compile(r"(Expected `[^`']+`(, got `[^`']+`)?|Object missing required field `[a-z_]+`)")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>[A-Za-z0-9_.-]{1,64})`")
_PART_TYPE: Final = re.compile(r"messages\[\d+\]\.content\[\d+\]\.type")


class Refusals(msgspec.Struct, frozen=True):
    """Fields that are known and not offered."""

    why: Mapping[str, str]
    harmless: Mapping[str, tuple[Any, ...]]
    """Values that ask for nothing."""


NOTHING_REFUSED: Final = Refusals({}, {})


class BodyLimits(msgspec.Struct, frozen=True):
    """How much of a body is read."""

    bytes: int = 4 << 20
    seconds: float = 30.0


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The whole body.

    Raises:
        ApiError: 415 no JSON, 413 too long, 408 too slow.
        ClientDisconnect: the client left.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A web page can send other types without asking first.
        raise ApiError(415, "send the body as JSON, with 'Content-Type: application/json'")
    too_long = ApiError(413, f"the body is longer than {limits.bytes} bytes", code="request_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.bytes:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {limits.seconds:g} s", code="request_timeout") from None
    return bytes(body)


def decode(body: bytes, kind: type[T], refusals: Refusals = NOTHING_REFUSED) -> T:
    """A body as `kind`.

    Raises:
        ApiError: 400, with the field's name and without its value.
    """
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError.bad("the body is nested too deeply", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError.bad("the body is no valid JSON", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError.bad("the body is not a JSON object", code="invalid_json")
    for name, why in refusals.why.items():
        if name in fields and not _among(fields.pop(name), refusals.harmless.get(name, ())):
            raise ApiError.bad(f"'{name}' is not supported: {why}", name, "unsupported_parameter")
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except RecursionError:
        raise ApiError.bad("the body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind) from None


def _among(value: object, harmless: tuple[Any, ...]) -> bool:
    """Whether `value` is one of them, and not merely equal: in Python `False == 0`."""
    return any(type(value) is type(known) and value == known for known in harmless)


def _refusal(message: str, kind: type) -> ApiError:
    """From the library's words, the place and what was expected there."""
    where = _WHERE.search(message)
    path = where["path"] if where else ""
    head = message[: where.start()] if where else message
    if unknown := _UNKNOWN.fullmatch(head):
        name = unknown["name"]
        known = [field.encode_name for field in msgspec.structs.fields(kind)] if not path else []
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        full = f"{path}.{name}" if path else name
        return ApiError.bad(f"unknown field '{full}': it is neither supported nor ignored{hint}", full, "unknown_field")
    if _PART_TYPE.fullmatch(path):
        return ApiError.bad(f"'{path}': only parts of type 'text' are taken, no images, audio or files", path)
    if _PLAIN.fullmatch(head):
        what = head[0].lower() + head[1:].replace("`", "'")
        return ApiError.bad(f"'{path}': {what}" if path else what, path or None)
    if not path:
        return ApiError.bad("the body has a field that is not understood")
    return ApiError.bad(f"'{path}' has a value that is not allowed there", path)


__all__ = ["NOTHING_REFUSED", "BodyLimits", "ClientDisconnect", "Refusals", "decode", "read_body"]
