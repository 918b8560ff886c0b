"""Prefill while the user is still typing: the line goes to the server word by word, and what is deleted has gone too."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from cutlayer.errors import CancelledError, CutlayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from cutlayer.client.connect import Client
    from cutlayer.text.tokenizer import Message

_LOOK_S: Final = 0.25
"""Between two looks at the line."""


class EagerPrefill:
    """Within, the conversation and the whole words of the line being typed are sent as they come; see `Client.prime`.

    Args:
        client: its session is used by this object's thread until the end of the ``with``.
        messages: the conversation so far.
        line: what is typed so far.
    """

    def __init__(self, client: Client, messages: Sequence[Message], line: Callable[[], str]) -> None:
        self._client = client
        self._messages = list(messages)
        self._line = line
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="eager-prefill", daemon=True)

    def __enter__(self) -> EagerPrefill:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        from cutlayer.text.tokenizer import Message

        sent = None
        while not self._done.wait(_LOOK_S):
            line = self._line()
            if line == sent:
                continue
            try:
                self._client.prime([*self._messages, Message("user", line)], cancelled=self._done.is_set)
            except CancelledError:
                return
            except CutlayerError:
                return  # the question itself will meet the same trouble, and say so
            sent = line


def typed_line() -> Callable[[], str] | None:
    """Reads the line that `input` is editing; None where there is no line editor to ask."""
    try:
        import readline
    except ImportError:
        return None
    return readline.get_line_buffer
