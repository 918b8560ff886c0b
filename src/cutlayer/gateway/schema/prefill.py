"""`/v1/prefill`: what is asked."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cutlayer.gateway.schema.chat import Turn


class PrefillRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A conversation that is being typed."""

    model: str | None = None
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1, max_length=10_000)]
    """The last one as far as it is written. Its last word counts when a blank follows it."""
