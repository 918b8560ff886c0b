"""How an engine is asked and how it answers, without HTTP and without the key: one file per engine.

All ids here are the engine's. What it says is typed where it is read, and text in it is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from cutlayer.client.sampling import Sampling
from cutlayer.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Length = Annotated[int, msgspec.Meta(ge=2)]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked for."""

    model: str
    """As the engine itself calls it."""
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop_ids: list[int]
    top: int | None
    """How many of the likeliest tokens to report; None reports nothing."""
    salt: str
    """Random; prompts of other salts share no cache, where the engine can tell them apart."""


class Token(msgspec.Struct, frozen=True):
    """One token of the engine's."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []
    """In no particular order."""


class Delta(msgspec.Struct, frozen=True):
    """What an event adds to an answer."""

    tokens: list[Token]
    finish: Literal["stop", "length"] | None = None


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of its model; None where it is silent."""

    name: str
    positions: int | None = None
    """Of prompt and answer together."""
    vocabulary: int | None = None
    directory: str | None = None
    """On its machine."""


class Call(NamedTuple):
    """A path and a JSON body."""

    path: str
    body: dict[str, Any]


class Scoring(NamedTuple):
    """Log-probabilities of a prompt: how to ask, and how to read the answer.

    `read` gives one token per token of the prompt, None for the first, or raises UpstreamError.
    """

    call: Call
    read: Callable[[bytes], list[Token | None]]


class Dialect(Protocol):
    """One engine's interface."""

    name: str

    def about(self, get: Callable[[str], bytes]) -> About:
        """What it serves.

        Args:
            get: the body at a path.

        Raises:
            UpstreamError: it is another engine.
        """
        ...

    def generation(self, ask: Ask) -> Call:
        """Ask for an answer as a stream."""
        ...

    def deltas(self, events: Iterator[bytes]) -> Iterator[Delta]:
        """Read the stream.

        Args:
            events: data of each server-sent event.

        Raises:
            UpstreamError: it is malformed.
        """
        ...

    def scoring(self, ask: Ask) -> Scoring | None:
        """Ask for log-probabilities of the prompt; None if this engine has none."""
        ...


def decode(body: bytes, kind: type[T]) -> T:
    """Read JSON.

    Raises:
        UpstreamError: it is none, or does not have the fields and types of `kind`.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        # Not the library's message, which may quote a value.
        raise UpstreamError(
            "the engine's answer does not have the form of its interface; is --upstream the right one?"
        ) from None


class _Card(msgspec.Struct):
    id: Name
    root: Name | None = None
    max_model_len: Length | None = None


class _Cards(msgspec.Struct):
    data: Annotated[list[_Card], msgspec.Meta(min_length=1)]


def from_models(get: Callable[[str], bytes]) -> About:
    """What `/v1/models` says, in the form of vLLM and SGLang.

    Raises:
        UpstreamError: something else.
    """
    card = decode(get("/v1/models"), _Cards).data[0]
    return About(name=card.id, positions=card.max_model_len, directory=card.root)
