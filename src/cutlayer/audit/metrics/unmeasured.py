"""The result of a metric that has none."""

from __future__ import annotations

import msgspec


class Unmeasured(msgspec.Struct, frozen=True):
    """A metric that could not be computed; never 0, which would read as "no leak".

    Attributes:
        reason: why not.
    """

    reason: str
