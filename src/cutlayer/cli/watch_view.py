"""The server's view in a terminal: the answer on the left as it comes, what the server reads on the right.

Green was read rightly, red wrongly though the attack was sure, grey wrongly and unsure, dim green rightly but unsure. What
is underlined was read by the quick attack only, so far. The chat template's tokens are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from cutlayer.audit.view import Seen, View

_SURE: Final = 0.5
_STYLES: Final = {
    (True, True): "green",
    (True, False): "dim green",
    (False, True): "red",
    (False, False): "bright_black",
}
"""(right, sure) → style."""
_FRAME_LINES: Final = 4
"""Borders, the line below, and the cursor's."""


def visible(text: str) -> str:
    """Text without line breaks and without anything a terminal would obey."""
    return "".join(character if character.isprintable() else "⏎" if character == "\n" else "·" for character in text)


def summary(view: View | None) -> str:
    """One line: how much was read."""
    if view is None:
        return "The server has been sent nothing yet."
    prompt, answer = view.share("prompt"), view.share("answer")
    counts = f"The server has read {prompt.read} of {prompt.of} tokens you wrote"
    if answer.of:
        counts += f" and {answer.read} of {answer.of} of the answers"
    if view.problem:
        return f"{counts}; then the {view.attack} attack stopped: {visible(view.problem)}"
    return f"{counts} ({f'{view.attack} attack' if view.final else 'still reading'})."


def reading(view: View | None) -> Text:
    """The tokens as the server reads them, coloured."""
    text = Text()
    origin = None
    for seen in view.tokens if view is not None else ():
        if seen.special:
            continue
        if origin is not None and seen.origin != origin:
            text.append("\n")
        origin = seen.origin
        text.append(visible(seen.guess_text), style=_style(seen))
    return text


def _style(seen: Seen) -> str:
    style = _STYLES[seen.right, seen.confidence >= _SURE]
    return f"{style} underline" if seen.provisional else style


class Board:
    """Both halves; a renderable that shows the present state each time it is drawn."""

    def __init__(self) -> None:
        self.answer = ""
        self.view: View | None = None
        self.whole = False
        """Whether to show everything rather than what fits the screen; for the last time it is drawn."""

    def show(self, view: View) -> None:
        """Take over a new view."""
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = None if self.whole else max(3, options.size.height - _FRAME_LINES)
        answer = Text("\n".join(visible(line) for line in self.answer.splitlines()))
        halves = Table.grid(expand=True)
        halves.add_column(ratio=1)
        halves.add_column(ratio=1)
        halves.add_row(
            Panel(_End(answer, lines), title="answer", title_align="left", border_style="bright_black"),
            Panel(
                _End(reading(self.view), lines),
                title="what the server reads",
                title_align="left",
                border_style="bright_black",
            ),
        )
        yield halves
        yield Text(summary(self.view), style="bold", no_wrap=True, overflow="ellipsis")


class _End:
    """The last lines of something."""

    def __init__(self, inner: RenderableType, lines: int | None) -> None:
        self._inner = inner
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rendered = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in rendered[-self._lines :] if self._lines is not None else rendered:
            yield from line
            yield Segment.line()
