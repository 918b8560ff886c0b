"""`cutlayer chat`: a conversation, of which every turn sends only its new positions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cutlayer.cli.client_options import ConnectOptions, SamplingOptions
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.client.generation import Result

_GREEDY = SamplingOptions()
_HELP = "/new starts over, /quit ends, Ctrl-C stops an answer\n"


def chat(
    *,
    at: ConnectOptions,
    sample: SamplingOptions = _GREEDY,
    max_tokens: int = 512,
    system: str | None = None,
    watch: bool = False,
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
        After each answer, say what crossed the network.
    """
    sampling = sample.sampling()
    interactive = sys.stdin.isatty()
    with at.connect() as client:
        from cutlayer.text.tokenizer import Message

        opening = [Message("system", system)] if system else []
        messages = list(opening)
        if interactive:
            sys.stderr.write(_HELP)
        while True:
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
                generation = client.generate(messages, max_tokens=max_tokens, sampling=sampling)
            except InputError as error:
                sys.stderr.write(f"cutlayer: {error}\n")
                messages.pop()
                continue
            try:
                for piece in generation:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                generation.close()
            result = generation.result()
            sys.stdout.write("\n")
            messages.append(Message("assistant", result.text))
            if watch:
                sys.stderr.write(_crossed(result))


def _ask(interactive: bool) -> str | None:
    """The next line, or None at the end of input."""
    try:
        line = input("> " if interactive else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        return None
    return line.strip()


def _crossed(result: Result) -> str:
    return (
        f"[{result.bytes.sent:,} B sent, {result.bytes.received:,} B received, {result.steps} round trips after the prefill, "
        f"defence {result.defence}]\n"
    )
