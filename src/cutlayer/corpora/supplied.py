"""Published sets that no package ships, from a user's own copies.

    prompts = supplied("alpaca-eval", Path("alpaca_eval.json"))

| name        | file                                                                                    |
|-------------|-----------------------------------------------------------------------------------------|
| alpaca-eval | JSON, a list of objects with ``instruction`` (``alpaca_eval.json``)                     |
| icliniq     | JSON, a list of objects with ``input``, the patient's question (``iCliniq.json``)       |
| ptb         | text, one sentence per line (``ptb.test.txt``)                                          |
| wikitext-2  | text, one paragraph per line, ``= Title =`` before each article (``wiki.test.tokens``)  |
| sst-2       | tab-separated with a header, columns ``sentence`` and ``label`` (``dev.tsv``)           |

PTB, WikiText-2 and SST-2 come tokenized (``<unk>``, ``@-@``, blanks before stops); the text is taken as it is.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.corpora.prompts import MAX_PROMPTS, MAX_TEXT_CHARACTERS, Prompt, read_bounded
from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Item = tuple[str, dict[str, str]]

_HEADING: Final = re.compile(r"=(?: =)* (?P<title>.+?) =(?: =)*")
_SENTIMENTS: Final = {"0": "negative", "1": "positive"}


class _Instruction(msgspec.Struct):
    instruction: str


class _Question(msgspec.Struct):
    input: str


def supplied(name: str, path: Path) -> list[Prompt]:
    """The texts of a set, ids ``NAME/1``, ``NAME/2``, …; empty ones are left out but counted.

    Raises:
        UnknownNameError: no such set.
        InputError: the file is not of the set's format, is too large or holds no text.
    """
    if name not in _LOADERS:
        raise UnknownNameError(f"unknown name {name!r} among supplied sets; available: {', '.join(sorted(_LOADERS))}")
    try:
        items = list(_LOADERS[name](read_bounded(path)))
    except (msgspec.MsgspecError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not in the format of {name}: {error}") from None
    prompts = [
        Prompt(text, f"{name}/{i}", [], attributes) for i, (text, attributes) in enumerate(items, 1) if text.strip()
    ]
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise InputError(f"{path} holds {len(prompts):,} texts; there must be 1 to {MAX_PROMPTS:,}")
    for prompt in prompts:
        if len(prompt.text) > MAX_TEXT_CHARACTERS:
            raise InputError(f"{path}: text {prompt.id} is longer than {MAX_TEXT_CHARACTERS:,} characters; shorten it")
    return prompts


def _alpaca_eval(data: bytes) -> Iterator[Item]:
    return ((item.instruction.strip(), {}) for item in msgspec.json.decode(data, type=list[_Instruction]))


def _icliniq(data: bytes) -> Iterator[Item]:
    return ((item.input.strip(), {"domain": "medical"}) for item in msgspec.json.decode(data, type=list[_Question]))


def _ptb(data: bytes) -> Iterator[Item]:
    return ((line.strip(), {}) for line in data.decode().split("\n"))


def _wikitext_2(data: bytes) -> Iterator[Item]:
    article = ""
    for line in data.decode().split("\n"):
        heading = _HEADING.fullmatch(line.strip())
        if heading is None:
            # Several paragraphs share an article: split sets by it, not by prompt.
            yield line.strip(), {"document": article}
        elif line.strip().count("=") == 2:  # deeper headings have more signs
            article = heading["title"]


def _sst_2(data: bytes) -> Iterator[Item]:
    rows = csv.DictReader(data.decode().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"sentence", "label"} <= set(rows.fieldnames or ()):
        raise csv.Error("the first line must name the columns sentence and label")
    for number, row in enumerate(rows, start=2):
        if row["label"] not in _SENTIMENTS:
            raise csv.Error(f"line {number}: the label must be 0 or 1")
        yield row["sentence"].strip(), {"sentiment": _SENTIMENTS[row["label"]]}


_LOADERS: Final[dict[str, Callable[[bytes], Iterator[Item]]]] = {
    "alpaca-eval": _alpaca_eval,
    "icliniq": _icliniq,
    "ptb": _ptb,
    "wikitext-2": _wikitext_2,
    "sst-2": _sst_2,
}
