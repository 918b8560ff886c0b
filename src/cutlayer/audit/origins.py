"""Whose words a token is: the user's, the model's, or the chat template's, which says the same to everyone.

Reading a template's tokens is no feat, so they are shown and not counted. A message's own tokens are those that change when
its text is taken out; nothing about templates is assumed but that they render messages one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cutlayer.errors import InputError
from cutlayer.prefix import common_length
from cutlayer.text.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.text.tokenizer import Tokenizer

Origin = Literal["template", "prompt", "answer"]


def origins_of(tokenizer: Tokenizer, messages: Sequence[Message], ids: Sequence[int]) -> list[Origin]:
    """The origin of every token of a rendered conversation. Earlier answers in it count as answers.

    Where a template rewrites earlier messages (some drop a model's thoughts), origins cannot be told apart, and all tokens
    but special ones are counted as prompt.

    Args:
        tokenizer: that rendered it.
        messages: the conversation.
        ids: as rendered.
    """
    origins: list[Origin] = ["template"] * len(ids)
    for i, message in enumerate(messages):
        try:
            whole = tokenizer.render(messages[: i + 1])
            empty = tokenizer.render([*messages[:i], Message(message.role, "")])
        except InputError:  # some templates refuse an empty message, or a conversation that ends with an answer
            return origins_of_text(tokenizer, ids)
        start = common_length(whole, empty)
        stop = len(whole) - common_length(whole[start:][::-1], empty[start:][::-1])
        if whole[:stop] != list(ids[:stop]):
            return origins_of_text(tokenizer, ids)
        origins[start:stop] = ["answer" if message.role == "assistant" else "prompt"] * (stop - start)
    return origins


def origins_of_text(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Origin]:
    """The origin of every token of a text without template: special tokens are the tokenizer's."""
    return ["template" if token in tokenizer.special_ids else "prompt" for token in ids]
