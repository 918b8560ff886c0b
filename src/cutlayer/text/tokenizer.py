"""A model's tokenizer and chat template, read from its local directory."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

import msgspec
from transformers import AutoTokenizer, GenerationConfig

from cutlayer.errors import InputError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WHOLE_WORDS: Final = re.compile(r"(.*\S)?\s", re.DOTALL)
"""With the first blank behind them, which shows that the last one is complete."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


class Tokenizer:
    """Encodes prompts, renders conversations, decodes answers.

    Args:
        directory: model directory with the tokenizer's files.

    Raises:
        ModelNotFoundError: there is no tokenizer.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelNotFoundError(f"no usable tokenizer in {directory}: {error}") from error
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # Otherwise the first call changes the shared backend, which then fails in any thread that is using it.
            backend.no_truncation()
            backend.no_padding()
        self.stop_ids = _stop_ids(directory, self._tokenizer.eos_token_id)
        """Token ids that end an answer."""
        self.special_ids = frozenset(self._tokenizer.all_special_ids)
        """Token ids that stand for no text."""

    @property
    def library_tokenizer(self) -> PreTrainedTokenizerBase:
        """The library's object, for what is compiled against a vocabulary; not to be changed."""
        return self._tokenizer

    def encode(self, prompt: str, special: bool = True) -> list[int]:
        """Token ids of plain text.

        Args:
            prompt: the text.
            special: add the special tokens that the model's tokenizer adds.

        Raises:
            InputError: the prompt has no tokens.
        """
        return _not_empty(self._tokenizer(prompt, add_special_tokens=special)["input_ids"])

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's next turn.

        Raises:
            InputError: no messages, or the model has no chat template that takes them.
        """
        if not messages:
            raise InputError("a conversation needs at least one message")
        if not self._tokenizer.chat_template:
            raise InputError("this model has no chat template; send the prompt raw (--raw)")
        try:
            encoded = self._tokenizer.apply_chat_template(
                [msgspec.to_builtins(message) for message in messages], add_generation_prompt=True, return_dict=True
            )
        except Exception as error:
            # Templates raise whatever their author chose, mostly jinja2 errors.
            raise InputError(f"the model's chat template refuses this conversation: {error}") from error
        return _not_empty(encoded["input_ids"])

    def certain(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that a conversation begins with however its last message goes on; it may be half written.

        They are those of its whole words: the last one, with no blank after it, may become another. What the template puts
        behind the message, and a token that would merge with what is written next, are told by comparing ways to go on.

        Raises:
            InputError: the model has no chat template that takes them.
        """
        if not messages:
            return []
        *earlier, last = messages
        written = _WHOLE_WORDS.match(last.content)
        whole = written[0] if written else ""
        # With more blanks as well: many tokenizers cut a run of them in another way when it grows.
        ways = (self.render([*earlier, Message(last.role, f"{whole}{more}")]) for more in ("0", "  ", "\n0", "\t\t"))
        alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*ways, strict=False))
        return [token for token, *_ in alike]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token by itself, special ones by name; part of a character shows as a replacement character."""
        decode = self._tokenizer.decode
        return [decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False) for token in ids]

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one at a time."""
        return TextStream(self)


class TextStream:
    """Token ids in, text out, never half a character.

    A byte-level token may end inside a character, and the text of a token may depend on its left neighbours. So a short
    window of ids is decoded twice, without and with the new id, and the difference is given out once it is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0
        self._given = 0

    def push(self, token: int) -> str:
        """Text that became certain with this token, possibly none."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._window : self._given])
        after = self._tokenizer.decode(self._ids[self._window :])
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        self._window, self._given = self._given, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What is left, with replacement characters for an unfinished one."""
        before = self._tokenizer.decode(self._ids[self._window : self._given])
        after = self._tokenizer.decode(self._ids[self._window :])
        self._window = self._given = len(self._ids)
        return after[len(before) :]


def _stop_ids(directory: Path, fallback: int | None) -> frozenset[int]:
    """End-of-sequence ids as `generate` would use them."""
    try:
        stop = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        stop = None
    found = {stop} if isinstance(stop, int) else set(stop or ())
    if fallback is not None:
        found.add(fallback)
    return frozenset(found)


def _not_empty(ids: Sequence[int]) -> list[int]:
    if not ids:
        raise InputError("the prompt is empty; give at least one token")
    return list(ids)
