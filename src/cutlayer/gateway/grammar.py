"""Answers that are valid JSON, or valid under a JSON schema, through llguidance: before each token it says which may come.

The tables it needs of the tokenizer take half a second and are built once, when the first schema is asked for. A schema is
compiled within llguidance's limits of size and time, and a regular expression in it cannot run away (no backtracking).

Notation: V vocabulary.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Final

import llguidance
import llguidance.hf
import torch

from cutlayer.errors import InputError
from cutlayer.gateway.problems import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cutlayer.client.sampling import TokenMask
    from cutlayer.text.tokenizer import Tokenizer

ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_LAYOUT: Final[Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line as models write it. With free white space a small model may go on with blanks until its tokens are used up."""
_KEYWORDS: Final = re.compile(r'"([$A-Za-z]{1,32})"')
_SILENT: Final = 0
"""Log level: its warnings quote the text."""
_PARAM: Final = "response_format"


class Grammars:
    """Compiles schemas for one tokenizer.

    Args:
        tokenizer: the model's.
        vocabulary: V, the width of the logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._table: llguidance.LLTokenizer | None = None
        self._building = threading.Lock()

    def compile(self, schema: Mapping[str, Any]) -> Callable[[], TokenMask]:
        """A function that makes a mask for each answer. Blocks.

        Raises:
            ApiError: the schema is wrong, or uses what llguidance cannot keep to.
        """
        table = self._tokens()
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides=_LAYOUT)
            matcher = llguidance.LLMatcher(table, grammar, log_level=_SILENT)
        except ValueError as error:
            raise ApiError.bad(f"the JSON schema is not usable{_keywords(str(error))}", _PARAM) from None
        if matcher.is_error():
            raise ApiError.bad(f"the JSON schema is not usable{_keywords(matcher.get_error())}", _PARAM)
        return lambda: JsonMask(matcher.deep_copy(), self._vocabulary)

    def _tokens(self) -> llguidance.LLTokenizer:
        with self._building:
            if self._table is None:
                library: Any = self._tokenizer.library_tokenizer
                try:
                    self._table = llguidance.hf.from_tokenizer(
                        library, n_vocab=self._vocabulary, eos_token=sorted(self._tokenizer.stop_ids)
                    )
                except ValueError:
                    raise ApiError.bad("this model's tokenizer allows no constrained answers", _PARAM) from None
            return self._table


class JsonMask:
    """One answer's state. See `cutlayer.client.sampling.TokenMask`.

    Args:
        matcher: at the beginning.
        vocabulary: V.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> torch.Tensor:
        """[V] of bool.

        Raises:
            InputError: the schema is too complex to go on.
        """
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)  # [V / 8]
        self._check()
        bits = packed.unsqueeze(1).bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1)  # [V / 8, 8]
        return bits.flatten()[: self._vocabulary].bool()

    def take(self, token: int) -> None:
        """The answer went on with `token`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError("the answer could not be kept to the JSON schema: it is too complex")


def _keywords(message: str) -> str:
    """Of the library's message only the keywords it does not know: the rest may quote the schema."""
    found = _KEYWORDS.findall(message) if message.startswith("Unimplemented keys") else []
    return f": these keywords are not supported: {', '.join(found)}" if found else ""
