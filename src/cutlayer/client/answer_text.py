"""The text of one answer as its tokens arrive: never half a character, and cut at the first stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.text.tokenizer import Tokenizer


class AnswerText:
    """Tokens in, text out.

    Args:
        tokenizer: turns ids into text.
        stop: strings that end the answer and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream = tokenizer.stream()
        self._stop = StopStrings(stop)
        self._decoded = 0

    @property
    def cut_off(self) -> bool:
        """Whether a stop string has come; there is no more text then."""
        return self._stop.found

    def push(self, token: int) -> tuple[int, str]:
        """Where the token begins in the text, in characters, and what text it makes certain, possibly none."""
        start, certain = self._decoded, self._stream.push(token)
        self._decoded += len(certain)
        return start, self._stop.push(certain)

    def finish(self) -> str:
        """What was held back; no token comes after it."""
        return self._stop.push(self._stream.finish()) + self._stop.finish()


class StopStrings:
    """Holds back text that may begin a stop string, and cuts at the first one.

    Args:
        stop: the strings; with none, everything passes.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found = False
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> str:
        """Text that is safe to give out."""
        if self.found or not self._stop:
            return "" if self.found else text
        self._held += text
        ends = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.found = True
            return self._held[: min(ends)]
        keep = max(
            (
                n
                for stop in self._stop
                for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return "" if self.found else held
