"""Which documents are for attacking and which an attacker may learn from: split by document, never by sentence.

A document's side follows from its id alone, so it never changes when others come or go. The documents that studies
attack are listed in ``test_ids.txt``.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from cutlayer.corpora.encyclopedia import documents
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.corpora.encyclopedia import Document

TEST_SHARE: Final = 0.2
"""Of documents, for attacking."""


def is_test(document_id: str) -> bool:
    """Whether the document is for attacking; no attacker's text comes from it.

    Examples:
        >>> is_test("wiki/Aristotle"), is_test("wiki/Acoustics")
        (True, False)
    """
    return _hash(document_id) < TEST_SHARE


def study_documents(n: int, seed: int = 0) -> list[Document]:
    """`n` test documents in an order of their own for every seed.

    Raises:
        InputError: there are fewer, or the encyclopedia is not installed.
    """
    test = sorted((d for d in documents() if is_test(d.id)), key=lambda d: _hash(f"{seed}/{d.id}"))
    if n > len(test):
        raise InputError(f"{n} documents were asked for, but only {len(test)} are for attacking")
    return test[:n]


def study_ids() -> list[str]:
    """Ids of the documents that studies attack: the committed ``study_documents(300, seed=0)``."""
    return files("cutlayer.corpora").joinpath("test_ids.txt").read_text(encoding="utf-8").splitlines()


def _hash(text: str) -> float:
    """Uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
