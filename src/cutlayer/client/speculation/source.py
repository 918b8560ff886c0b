"""What says which tokens may follow a context.

Sources know nothing of trees or of each other; `mixed.py` asks all of them at every node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.mixture import Opinion
    from cutlayer.client.speculation.speculator import Verified


class Source(Protocol):
    """One kind of knowledge about what follows."""

    def follow(self, ids: Sequence[int]) -> None:
        """Prompt and answer are now `ids`; guesses after them are asked for next."""
        ...

    def propose(self, context: tuple[int, ...]) -> Opinion:
        """What it says of a context.

        Args:
            context: the last tokens, guessed ones included; at most `growth.HORIZON`.
        """
        ...

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """Learn from a round trip.

        Args:
            seen: the round trip.
            contexts: of each of its rows, the tokens up to it.
        """
        ...

    def close(self) -> None:
        """Keep what outlives the session."""
        ...


class Weighed(NamedTuple):
    """A source and how much it is believed before a session has shown anything."""

    source: Source
    weight: float
    """Power its probabilities are taken to."""
    doubt: float
    """Added, when it speaks, to the log-weight of "none of the tokens named". Negative: what it knows, it knows well."""
