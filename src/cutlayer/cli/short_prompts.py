"""Prompts that a draft head or a table of candidates is made from the answers to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from cutlayer.text.tokenizer import Tokenizer

LONGEST_PROMPT: Final = 128
"""Tokens; a longer one would leave its text no room for an answer."""


def short_prompts(file: Path | None, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of prompts that leave room for an answer, in the chat template; of our own questions, if there is no file.

    Raises:
        InputError: the file cannot be read, or has fewer than two such prompts.
    """
    from cutlayer.corpora.prompts import read_prompts
    from cutlayer.corpora.questions import questions
    from cutlayer.text.tokenizer import Message

    read = read_prompts(file) if file else questions()
    encoded = [tokenizer.render([Message("user", prompt.text)]) for prompt in read]
    short = [ids for ids in encoded if len(ids) <= LONGEST_PROMPT]
    if len(short) < 2:
        raise InputError(
            f"{len(short)} of {len(read)} prompts have at most {LONGEST_PROMPT} tokens; give 2 or more such"
        )
    return short
