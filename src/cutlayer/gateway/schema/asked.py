"""Fields that both generating endpoints take, and how they become a `Sampling`.

A field that changes the answer is either honoured or refused. Fields that change nothing here are listed one by one and accepted,
because common clients send them; whatever is on no list is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from cutlayer.client.sampling import Sampling
from cutlayer.gateway.problems import ApiError

MOST_CHOICES: Final = 16
MOST_LOGPROBS: Final = 20
_MOST_STOPS: Final = 16
_SEEDS: Final = 1 << 63

Unit = Annotated[float, msgspec.Meta(ge=0, le=1)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
SeedValue = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    """One more chunk at the end, with the tokens used."""
    include_obfuscation: bool | None = None
    """Accepted; chunks are never padded."""


class Asked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `/v1/chat/completions` and `/v1/completions` have in common."""

    model: str
    """A name that `/v1/models` lists."""
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    """Default 1; 0 is greedy."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=1_000_000_000)] | None = None
    """Keep the k likeliest tokens; 0 and -1 keep all."""
    min_p: Unit | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    logit_bias: dict[int, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    """Token id → added to its logit."""
    n: Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)] | None = None
    seed: SeedValue | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted and not used."""
    metadata: dict[str, Any] | None = None
    """Accepted and not used."""
    service_tier: str | None = None
    """Accepted and not used."""
    store: bool | None = None
    """Nothing is stored here; true is refused."""
    safety_identifier: str | None = None
    """Accepted and not used."""
    prompt_cache_key: str | None = None
    """Accepted and not used: each API key has sessions of its own."""
    prompt_cache_retention: str | None = None
    """Accepted and not used."""

    def check(self) -> None:
        """Refuse what the types allow and this gateway does not do.

        Raises:
            ApiError: with the field's name.
        """
        if self.store:
            raise ApiError.bad("this gateway stores nothing; leave out 'store' or send false", "store")
        if self.stream_options is not None and not self.stream:
            raise ApiError.bad("'stream_options' is for streams; send 'stream': true with it", "stream_options")

    def stops(self) -> tuple[str, ...]:
        """Stop strings, possibly none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, choice: int) -> Sampling:
        """Of the choice of that number. A seed gives every choice a seed of its own, and the same ones each time."""
        return Sampling(
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=self.logit_bias or {},
            seed=None if self.seed is None else (self.seed + choice) % _SEEDS,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the tokens used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
