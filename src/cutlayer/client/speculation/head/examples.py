"""Texts a draft head learns from: tokens, what the server returned for them, and what the model would have said.

One safetensors file per text. They are as private as the texts themselves; the folder is its owner's alone.

Notation: T tokens, D hidden size, K likeliest tokens kept of each distribution.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIKELIEST: Final = 32
"""K. The tail that is cut off is what no tree of guesses would hold."""


class Example(NamedTuple):
    """A text."""

    ids: torch.Tensor
    """[T] int32"""
    returned: torch.Tensor
    """[T, D] bfloat16"""
    likely: torch.Tensor
    """[T, K] int32, the likeliest first."""
    chances: torch.Tensor
    """[T, K] bfloat16, the model's probabilities of those."""
    answer: torch.Tensor
    """[1] int32, position at which the model's own words begin; T if none are its own."""


def save_example(example: Example, path: Path) -> None:
    """Write it whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in example._asdict().items()}, partial)
    os.replace(partial, path)  # noqa: PTH105


def load_example(path: Path) -> Example:
    """Read it.

    Raises:
        WeightsError: it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return Example(*(file.get_tensor(name) for name in Example._fields))
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} is no example of a draft head's: {error}; remove its folder and start anew"
        ) from error


class Batch(NamedTuple):
    """B texts, padded at their ends to T tokens."""

    ids: torch.Tensor
    """[B, T]"""
    returned: torch.Tensor
    """[B, T, D]"""
    likely: torch.Tensor
    """[B, T, K]"""
    chances: torch.Tensor
    """[B, T, K], zeros in the padding."""
    answers: Sequence[int]
    """[B], as `Example.answer`."""
    lengths: Sequence[int]
    """[B]"""


def batch_of(examples: Sequence[Example]) -> Batch:
    """Pad and stack."""

    def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)

    ids, returned, likely, chances, answers = zip(*examples, strict=True)
    return Batch(
        stacked(ids).long(),
        stacked(returned),
        stacked(likely).long(),
        stacked(chances).float(),
        [int(answer) for answer in answers],
        [len(tokens) for tokens in ids],
    )
