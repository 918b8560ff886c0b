"""What the benchmarks of the key cut measure quality on."""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.audit.utility import Item
from cutlayer.corpora.split import study_documents
from cutlayer.corpora.tasks import completions

LENGTH = 64

Encode = Callable[[str], list[int]]


def plain_texts(encode: Encode, count: int) -> list[list[int]]:
    """Beginnings of encyclopedia leads that no attacker owns, `LENGTH` tokens at most."""
    return [encode(document.text)[:LENGTH] for document in study_documents(count, seed=1)]


def task_items(encode: Encode, count: int) -> list[Item]:
    """Completions with four choices, none shown before."""
    return [
        Item(encode(item.prompt), [encode(f" {choice}") for choice in item.choices], item.answer)
        for item in completions()[:count]
    ]
