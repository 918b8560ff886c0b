"""What a server reads of a conversation, token by token, beside what was really said.

Made where the truth is known; for the eyes of the person who typed it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cutlayer.audit.origins import Origin


class Share(NamedTuple):
    """So many of so many tokens."""

    read: int
    of: int


class Seen(msgspec.Struct, frozen=True):
    """One token that crossed, and what the attack makes of it."""

    position: int
    text: str
    guess_text: str
    confidence: float
    """In [0, 1], the attack's own opinion."""
    right: bool
    """Whether the very token was read, not merely one that looks like it."""
    origin: Origin
    provisional: bool
    """Read by the quick attack so far; the strong one has not got here."""

    @property
    def special(self) -> bool:
        """Part of the template: the same for everyone, shown and not counted."""
        return self.origin == "template"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the server reads, at one moment."""

    tokens: list[Seen]
    """Positions [0, T), as far as they crossed. The last token of an answer never does."""
    attack: str
    """The strong attack's specification."""
    final: bool
    """Whether the strong attack has read everything that crossed, and nothing more will."""
    problem: str = ""
    """Why the reading stopped early; empty when it did not."""

    def share(self, origin: Origin) -> Share:
        """How many of the tokens of one origin were read rightly."""
        of = [seen for seen in self.tokens if seen.origin == origin]
        return Share(sum(seen.right for seen in of), len(of))
