"""What a gateway serves, however the model is run: split with a server, or whole and obfuscated in an engine of others.

A `Served` says what there is; its `Session` gives answers, each a `Generating`. Requests, queues, events and errors are written
against these and know nothing else of either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cutlayer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cutlayer.client.generation import FinishReason, Piece
    from cutlayer.client.logprobs import Logprobs
    from cutlayer.client.sampling import Sampling, TokenMask


class Generating(Protocol):
    """One answer in progress; see `cutlayer.client.generation.Generation`."""

    def __iter__(self) -> Iterator[Piece]: ...

    @property
    def token_ids(self) -> Sequence[int]:
        """Tokens so far, an ending special token included."""
        ...

    @property
    def prompt_logprobs(self) -> list[Logprobs | None]:
        """One per token of the prompt, once the first piece has come, when asked for."""
        ...

    @property
    def reused(self) -> int:
        """Tokens of the prompt that were held already, as far as this side knows."""
        ...

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        ...

    @property
    def hit_stop_string(self) -> bool:
        """Whether one of the request's stop strings ended it."""
        ...

    def cancel(self) -> None:
        """Have the thread that iterates stop soon; from any thread."""
        ...


class Session(Protocol):
    """Answers one prompt at a time; see `cutlayer.client.connect.Client`."""

    @property
    def held(self) -> Sequence[int]:
        """Token ids that need not be computed again where a prompt begins with them."""
        ...

    @property
    def released(self) -> int:
        """Positions the other side has been sent so far, repeats included."""
        ...

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        logprobs: int | None,
        prompt_logprobs: bool,
        mask: TokenMask | None,
    ) -> Generating:
        """Begin an answer.

        Raises:
            InputError: something that this session cannot do.
        """
        ...

    def prefill(self, prompt: Sequence[int]) -> Generating:
        """Send what is not held of a prompt, and generate nothing.

        Raises:
            InputError: nothing that is sent is held for a later prompt.
        """
        ...

    def another(self) -> Session:
        """A further session, with nothing held in common."""
        ...

    def probe(self) -> object:
        """Ask the other side whether it is there.

        Raises:
            WireError: it does not answer.
        """
        ...

    def abort(self) -> None:
        """Break off for good, from another thread."""
        ...

    def close(self) -> None:
        """Take leave of the other side."""
        ...


class Schemas(Protocol):
    """How answers are kept to JSON schemas; see `cutlayer.gateway.grammar.Grammars`."""

    def compile(self, schema: Mapping[str, Any]) -> Callable[[], TokenMask]:
        """A function that makes a mask for each answer. Blocks.

        Raises:
            ApiError: the schema is unusable, or nothing can be kept to one here.
        """
        ...


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model and the first session with it."""

    session: Session
    name: str
    """Of the model's directory."""
    tokenizer: Tokenizer
    schemas: Schemas
    vocabulary: int
    max_positions: int
    """Tokens a session holds."""
    fingerprint: str
    """Of the weights."""
    cut: str
    """What the other side runs, in a few words."""
    defence: str
    """What is done to what it is sent."""
    statement: str
    """What it can read of that."""
