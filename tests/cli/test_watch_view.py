"""The server's view in a terminal."""

from __future__ import annotations

from rich.console import Console

from cutlayer.audit.view import Seen, View
from cutlayer.cli.watch_view import Board, reading, summary


def seen(
    guess: str, right: bool = True, confidence: float = 1.0, origin: str = "prompt", provisional: bool = False
) -> Seen:
    text = guess if right else "?"
    return Seen(0, text, guess, confidence, right, origin, provisional)  # type: ignore[arg-type]


def view(*tokens: Seen, final: bool = True, problem: str = "") -> View:
    return View(tokens=list(tokens), attack="search", final=final, problem=problem)


def drawn(board: Board, height: int = 12, width: int = 80) -> str:
    console = Console(width=width, height=height, force_terminal=True, color_system="truecolor", record=True)
    with console.capture() as captured:
        console.print(board)
    return captured.get()


def test_summary_counts_what_the_user_wrote_and_not_the_template() -> None:
    tokens = seen("<user>", origin="template"), seen("a"), seen("b", right=False), seen("c", origin="answer")
    assert (
        summary(view(*tokens))
        == "The server has read 1 of 2 tokens you wrote and 1 of 1 of the answers (search attack)."
    )
    assert "still reading" in summary(view(*tokens, final=False))
    assert "stopped: ValueError: no" in summary(view(*tokens, problem="ValueError: no"))
    assert "sent nothing" in summary(None)


def test_colours_say_right_or_wrong_and_how_sure() -> None:
    text = reading(
        view(
            seen("<user>", origin="template"),
            seen("a"),
            seen("b", confidence=0.1),
            seen("c", right=False),
            seen("d", right=False, confidence=0.1),
            seen("e", provisional=True),
            seen("f", origin="answer"),
        )
    )
    assert text.plain == "abcde\nf"
    assert [str(span.style) for span in text.spans] == [
        "green", "dim green", "red", "bright_black", "green underline", "green",
    ]  # fmt: skip


def test_guesses_cannot_steer_the_terminal() -> None:
    board = Board()
    board.answer = "left\x1b[2Jright\r\nbelow"
    board.show(view(seen("\x1b]0;title\x07"), seen("\n"), seen("[bold]\u202e")))
    shown = drawn(board)
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown
    assert "\u202e" not in shown
    assert "[bold]" in shown
    assert "⏎" in shown


def test_while_it_runs_the_end_shows_and_afterwards_everything() -> None:
    board = Board()
    board.answer = "\n".join(f"line {i}" for i in range(30))
    running = drawn(board)
    assert "line 29" in running
    assert "line 3 " not in running
    assert running.count("\n") <= 12
    board.whole = True
    assert all(f"line {i}" in drawn(board) for i in range(30))
