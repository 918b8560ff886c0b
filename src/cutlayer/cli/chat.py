"""`cutlayer chat`: a conversation, of which every turn sends only its new positions."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from cutlayer.cli.client_options import ConnectOptions, SamplingOptions
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.held import Held
    from cutlayer.audit.watch import Watcher
    from cutlayer.client.connect import Client
    from cutlayer.client.generation import Generation, Result
    from cutlayer.text.tokenizer import Message

_GREEDY = SamplingOptions()
_HELP = "/new starts over, /quit ends, Ctrl-C stops an answer\n"


def chat(
    *,
    at: ConnectOptions,
    sample: SamplingOptions = _GREEDY,
    max_tokens: int = 512,
    system: str | None = None,
    watch: bool = False,
    eager: bool = False,
) -> int:
    """Talk, turn by turn.

    Parameters
    ----------
    at
        Server and model.
    sample
        Sampling.
    max_tokens
        Each answer's longest length.
    system
        System message; default: the model's own.
    watch
        Attack what crosses and show beside each answer what the server can read of the conversation.
    eager
        Send what you type while you type it, so that the answer begins sooner. What you delete again has been sent, too.
    """
    if watch and eager:
        raise InputError("--watch and --eager do not go together: the view is of what was sent as asked")
    asking: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sample.sampling()}
    interactive = sys.stdin.isatty()
    held = _held(at) if watch else None
    with ExitStack() as stack:
        client = stack.enter_context(at.connect(held))
        watcher = stack.enter_context(_watcher(client, held)) if held is not None else None

        from cutlayer.audit.measured import statement_for
        from cutlayer.text.tokenizer import Message

        sys.stderr.write(statement_for(client) + "\n")
        opening = [Message("system", system)] if system else []
        messages = list(opening)
        if interactive:
            sys.stderr.write(_HELP)
        while True:
            with _eagerly(client, messages) if eager and interactive else nullcontext():
                line = _ask(interactive)
            if line is None or line == "/quit":
                return 0
            if line == "/new":
                messages = list(opening)
                continue
            if not line:
                continue
            messages.append(Message("user", line))
            try:
                result = _answer(client, watcher, messages, asking)
            except InputError as error:
                sys.stderr.write(f"cutlayer: {error}\n")
                messages.pop()
                continue
            messages.append(Message("assistant", result.text))
            if watch:
                sys.stderr.write(_crossed(result))


def _eagerly(client: Client, messages: Sequence[Message]) -> AbstractContextManager[object]:
    from cutlayer.cli.eager import EagerPrefill, typed_line

    line = typed_line()
    return EagerPrefill(client, messages, line) if line is not None else nullcontext()


def _ask(interactive: bool) -> str | None:
    """The next line, or None at the end of input."""
    try:
        line = input("> " if interactive else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        return None
    return line.strip()


def _answer(client: Client, watcher: Watcher | None, messages: Sequence[Message], asking: dict[str, Any]) -> Result:
    if watcher is None:
        return _stream(client.generate(messages, **asking))
    if sys.stdout.isatty():
        return _stream_beside(watcher, messages, asking)
    from cutlayer.cli.watch_view import reading, summary

    result = _stream(watcher.ask(messages, **asking))
    view = watcher.settle()
    sys.stderr.write(f"What the server reads:\n{reading(view).plain}\n{summary(view)}\n")
    return result


def _stream(generation: Generation) -> Result:
    """Print the answer as it comes."""
    try:
        for piece in generation:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        generation.close()
    sys.stdout.write("\n")
    return generation.result()


def _stream_beside(watcher: Watcher, messages: Sequence[Message], asking: dict[str, Any]) -> Result:
    """Draw the answer and the server's view side by side as both come."""
    from rich.live import Live

    from cutlayer.cli.watch_view import Board

    board = Board()
    generation = watcher.ask(messages, on_view=board.show, **asking)
    with Live(board, refresh_per_second=8):
        try:
            for piece in generation:
                board.answer += piece.text
            board.show(watcher.settle())
        except KeyboardInterrupt:
            generation.close()  # the view stays as far as it got
        board.whole = True
    return generation.result()


def _held(at: ConnectOptions) -> Held:
    from cutlayer.audit.held import Held

    return Held(at.dialler())


def _watcher(client: Client, held: Held) -> Watcher:
    from cutlayer.audit.watch import Watcher

    return Watcher(client, held)


def _crossed(result: Result) -> str:
    return (
        f"[{result.bytes.sent:,} B sent, {result.bytes.received:,} B received, {result.steps} round trips after the prefill, "
        f"defence {result.defence}]\n"
    )
