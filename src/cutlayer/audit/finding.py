"""What a check found, in words and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

Status = Literal["ok", "warning", "fail"]
Evidence = dict[str, str | int | float | bool | list[str] | None]

SHOWN: Final = 4
"""Places named in an explanation; one is enough to know, all are too many to read."""


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check.

    Neither text may hold prompt text, token ids or hidden states: findings are printed, logged and sent in bug reports.
    """

    name: str
    status: Status
    explanation: str
    """For people: what holds or does not, and what to do about it."""
    evidence: Evidence = {}
    """For machines: what it was concluded from."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one run."""

    server: str
    """As the user named it."""
    model: str
    cut: str
    """``"2:28 of 30"``, or empty when the server was not reached."""
    canary: str | None
    """The random phrase the probe prompt held; None when the prompt was the user's own."""
    findings: list[Finding]
    crossed: str
    """What went over the network, in words."""
    never_crossed: str
    """What the server was never given, in words; only what the findings bear out."""
    caveat: str
    """What all this does not show; empty when there was no run."""

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [finding.name for finding in self.findings if finding.status == "fail"]

    @property
    def exit_code(self) -> int:
        """0 when nothing failed, 1 otherwise. Warnings do not count."""
        return 1 if self.failed else 0


def first_few(places: Sequence[str]) -> str:
    """Up to `SHOWN` of them, and how many more there are."""
    more = len(places) - SHOWN
    return "; ".join(places[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
