"""The published description, OpenAPI 3.1, generated from the types that requests are checked against."""

from __future__ import annotations

from typing import Any, Final

import msgspec

import cutlayer
from cutlayer.gateway.problems import ProblemAnswer
from cutlayer.gateway.schema.answers import (
    ChatCompletion,
    Completion,
    Detokenized,
    Model,
    ModelList,
    Prefilled,
    Status,
    Tokens,
)
from cutlayer.gateway.schema.chat import ChatRequest
from cutlayer.gateway.schema.completion import CompletionRequest
from cutlayer.gateway.schema.prefill import PrefillRequest
from cutlayer.gateway.tokens import DetokenizeRequest, TokenizeRequest

_REF: Final = "#/components/schemas/{name}"
_ERRORS: Final = {
    "400": "A field is wrong, unknown or not supported; `param` names it.",
    "401": "No valid API key.",
    "403": "A web page of another site.",
    "404": "No such model.",
    "405": "Another method is wanted.",
    "408": "The body came too slowly.",
    "413": "The body is too long.",
    "415": "The body is not JSON.",
    "421": "The Host header names another server.",
    "429": "All sessions are busy, and the queue is full (see Retry-After) or the request is a hint, which does not wait.",
    "502": "The server that runs the model failed.",
    "503": "The server that runs the model is away or full; see Retry-After.",
    "504": "The server that runs the model took the request and then said nothing.",
}
_NEEDS_SERVER: Final = frozenset({"429", "502", "503", "504"})
_LOCAL: Final = frozenset({"/v1/tokenize", "/v1/detokenize"})


def description(model: str) -> dict[str, Any]:
    """The document.

    Args:
        model: the served name; requests may name no other.
    """
    posts: dict[str, tuple[str, type, type, str | None]] = {
        "/v1/chat/completions": ("Continue a conversation.", ChatRequest, ChatCompletion, "text/event-stream"),
        "/v1/completions": ("Continue texts, or score them.", CompletionRequest, Completion, "text/event-stream"),
        "/v1/prefill": ("Have a prompt sent while its last message is being typed.", PrefillRequest, Prefilled, None),
        "/v1/tokenize": ("Token ids of a text or a conversation.", TokenizeRequest, Tokens, None),
        "/v1/detokenize": ("Text of token ids.", DetokenizeRequest, Detokenized, None),
    }
    gets: dict[str, tuple[str, type]] = {
        "/v1/models": ("The served model.", ModelList),
        "/v1/models/{id}": ("The served model, if it goes by this name.", Model),
        "/health": ("Whether this process answers.", Status),
        "/ready": ("Whether the server that runs the model answers too.", Status),
    }
    kinds = [kind for _, asked, answered, _ in posts.values() for kind in (asked, answered)]
    kinds += [kind for _, kind in gets.values()] + [ProblemAnswer]
    references, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = dict(zip(kinds, references, strict=True))
    for _, asked, _, _ in posts.values():
        _name_model(components[asked.__name__], model)

    def answers(schema: dict[str, Any], stream: str | None, errors: frozenset[str]) -> dict[str, Any]:
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if stream is not None:
            content[stream] = {"schema": {"type": "string"}}
        problem = {"application/json": {"schema": schemas[ProblemAnswer]}}
        return {"200": {"description": "Done.", "content": content}} | {
            status: {"description": text, "content": problem} for status, text in _ERRORS.items() if status in errors
        }

    everything = frozenset(_ERRORS)
    paths: dict[str, Any] = {}
    for path, (summary, asked, answered, stream) in posts.items():
        errors = everything - _NEEDS_SERVER if path in _LOCAL else everything
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": schemas[asked]}}},
                "responses": answers(schemas[answered], stream, errors),
            }
        }
    for path, (summary, answered) in gets.items():
        few = frozenset({"401", "403", "404", "405", "421"} | ({"503"} if path == "/ready" else set()))
        paths[path] = {"get": {"summary": summary, "responses": answers(schemas[answered], None, few)}}
    paths["/v1/models/{id}"]["get"]["parameters"] = [
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cutlayer gateway",
            "version": cutlayer.__version__,
            "description": "OpenAI's interface in front of a model that is split between this machine and a server.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _name_model(schema: dict[str, Any], model: str) -> None:
    """Say which names the field takes."""
    field = schema["properties"]["model"]
    schema["properties"]["model"] = {"enum": [model] if field.get("type") == "string" else [model, None]}
