"""A small utility task: eighty factual completions with four choices each, of our own.

It tells whether a defence costs a model what it knows; it is no benchmark of the model. The right choice stands equally
often at every place. A choice is scored by the log-probability of ``" " + choice`` after ``few_shot(item)``.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Final

import msgspec

from cutlayer.errors import InputError

DEMONSTRATIONS: Final = 4
"""The file's first so many items are shown, not asked."""


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One item.

    Attributes:
        prompt: a sentence without its end.
        choices: four ends, different from each other.
        answer: index of the right one.
    """

    prompt: str
    choices: Annotated[list[str], msgspec.Meta(min_length=4, max_length=4)]
    answer: Annotated[int, msgspec.Meta(ge=0, le=3)]


def completions() -> list[Completion]:
    """The items that are asked."""
    return _read()[DEMONSTRATIONS:]


def few_shot(item: Completion, shots: int = DEMONSTRATIONS) -> str:
    """The item's prompt after `shots` answered ones, one per line.

    Raises:
        InputError: more shots than there are, or fewer than none.
    """
    if not 0 <= shots <= DEMONSTRATIONS:
        raise InputError(f"{shots} shots were asked for; there are 0 to {DEMONSTRATIONS}")
    shown = [f"{shot.prompt} {shot.choices[shot.answer]}." for shot in _read()[:shots]]
    return "\n".join([*shown, item.prompt])


def _read() -> list[Completion]:
    lines = files("cutlayer.corpora").joinpath("completions.jsonl").read_bytes()
    return msgspec.json.Decoder(Completion).decode_lines(lines)
