"""Text of both sides, as plain token ids: what is sent to the host, and what the attacker owns. No document is in both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.corpora.encyclopedia import available, documents
from cutlayer.corpora.questions import questions
from cutlayer.corpora.split import is_test, study_documents
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Encode = Callable[[str], list[int]]

CORPUS_TOKENS: Final = 1_000_000
"""Of the attacker's text, at most."""


class Material(NamedTuple):
    """Documents, each a list of plain ids."""

    sent: list[list[int]]
    corpus: list[list[int]]
    source: str
    """What both are."""


def material(encode: Encode, tokens: int, seed: int = 0) -> Material:
    """Encyclopedia leads where they are installed, else questions of this project's own, half and half.

    Args:
        encode: text → ids, of the plain model.
        tokens: sent to the host, at least; the last document is whole. Fewer where there is no more text.
        seed: of the choice.

    Raises:
        InputError: `tokens` is not positive.
    """
    if tokens < 1:
        raise InputError(f"{tokens} tokens are no log; send at least one")
    if available():
        test = [document.text for document in study_documents(_test_documents(), seed)]
        own = [document.text for document in documents() if not is_test(document.id)]
        kind = "encyclopedia leads"
    else:
        asked = [question.text for question in questions()]
        test, own, kind = asked[::2], asked[1::2], "questions of this project's own (no encyclopedia installed)"
    sent, corpus = _first(map(encode, test), tokens), _first(map(encode, own), CORPUS_TOKENS)
    source = f"{kind}: {sum(map(len, sent))} tokens sent, {sum(map(len, corpus))} tokens of other documents owned"
    return Material(sent, corpus, source)


def first_tokens(sent: Iterable[list[int]], tokens: int) -> list[list[int]]:
    """The first documents with `tokens` ids in all; the last one is cut."""
    kept: list[list[int]] = []
    for document in sent:
        left = tokens - sum(map(len, kept))
        if left <= 0:
            break
        kept.append(document[:left])
    return kept


def _first(encoded: Iterable[list[int]], tokens: int) -> list[list[int]]:
    kept, total = [], 0
    for document in encoded:
        kept.append(document)
        total += len(document)
        if total >= tokens:
            break
    return kept


def _test_documents() -> int:
    return sum(is_test(document.id) for document in documents())
