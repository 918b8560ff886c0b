"""`/v1/chat/completions`: what is asked."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.schema.asked import MOST_LOGPROBS, Asked
from cutlayer.text.tokenizer import Message

_Nothing = Annotated[list[str], msgspec.Meta(max_length=0)] | None

_NO_TOOLS: Final = (
    "tools are not offered: nothing here runs functions or checks their arguments; use response_format for JSON"
)
REFUSED: Final[dict[str, str]] = {
    "tools": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "modalities": "only text is taken and given",
    "audio": "only text is taken and given",
    "web_search_options": "nothing here searches the web",
    "reasoning_effort": "the model has no setting for it",
    "verbosity": "the model has no setting for it; ask for it in the prompt",
}
"""Field → why it is refused, unless its value is one of `HARMLESS`."""
HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
}
"""Values that ask for nothing."""


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A piece of a message's text. Images, audio and files are refused."""

    text: str


class Turn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message. The fields that are always empty are in messages of ours which clients send back."""

    role: Literal["system", "developer", "user", "assistant"]
    """A developer's message is given to the model as the system's."""
    content: str | list[TextPart]
    refusal: None = None
    annotations: _Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: _Nothing = None

    def message(self) -> Message:
        """As the tokenizer takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class PlainText(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """No constraint."""


class JsonObject(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """The answer is a JSON object."""


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON schema under OpenAI's wrapping."""

    name: str
    schema: dict[str, Any] | None = None
    """None allows any object."""
    description: str | None = None
    """Accepted and not used; tell the model in the prompt."""
    strict: bool | None = None
    """Accepted; the schema is always kept to."""


class JsonSchema(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """The answer is valid under a schema."""

    json_schema: NamedSchema


class ChatRequest(Asked, kw_only=True):
    """A conversation to be continued."""

    messages: Annotated[list[Turn], msgspec.Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """The same as `max_tokens`; it comes first if both are given."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: PlainText | JsonObject | JsonSchema | None = None
    parallel_tool_calls: bool | None = None
    """Accepted; there are no tools."""

    def check(self) -> None:
        """See `Asked.check`."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError.bad("'top_logprobs' needs 'logprobs': true", "top_logprobs")
        if self.max_tokens == 0:
            raise ApiError.bad("'max_tokens' must be at least 1", "max_tokens")

    @property
    def longest(self) -> int | None:
        """Tokens of the answer at most, None if nothing is said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens to report; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None
