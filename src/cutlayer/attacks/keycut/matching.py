"""Rows of one matrix to rows of another.

Notation: N rows to be named, V rows to choose from, K columns, d plain hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_AT_ONCE: Final = 1 << 26
"""Similarities in memory at a time."""


class Match(NamedTuple):
    """The best row for each."""

    best: torch.Tensor
    """[N] index of the most similar row."""
    similarity: torch.Tensor
    """[N] its similarity."""
    margin: torch.Tensor
    """[N] by how much it leads the second."""


def most_similar(rows: torch.Tensor, table: torch.Tensor) -> Match:
    """The largest inner product of each of `rows` [N, K] with rows of `table` [V, K]; unit rows give cosines."""
    return _best(rows, lambda chunk: chunk @ table.T, len(table))


def closest(rows: torch.Tensor, table: torch.Tensor) -> Match:
    """The smallest Euclidean distance of each of `rows` [N, K] to rows of `table` [V, K]; similarity is −½ its square."""
    centre = table.mean(0)  # differences are small beside the values, and float32 has seven digits
    table = table - centre
    lengths = table.square().sum(1) / 2  # [V]
    return _best(rows - centre, lambda chunk: chunk @ table.T - lengths - chunk.square().sum(1, True) / 2, len(table))


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows [N, K] of length 1."""
    return normalize(rows, dim=1)


def same_token(undone: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]) -> Match:
    """Rows of token tables in the plain basis against the base's, by the mean of their cosines.

    Args:
        undone: of the asked ids, [N, d] for each table.
        tables: of the base, [V, d] each.
    """
    # rows of trained tables share a large common part, which would make all cosines alike
    centres = [table.mean(0) for table in tables]
    rows = torch.cat([unit(part - centre) for part, centre in zip(undone, centres, strict=True)], 1)
    plain = torch.cat([unit(part - centre) for part, centre in zip(tables, centres, strict=True)], 1)
    return most_similar(rows / len(tables), plain)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """Each row [N, K] in rising order: what is left of it when its columns were permuted."""
    # numpy sorts float32 several times as fast as torch where the processor has wide vectors
    values = rows.numpy().copy()
    values.sort(axis=1)
    return torch.from_numpy(values)


def _best(rows: torch.Tensor, similarity: Callable[[torch.Tensor], torch.Tensor], count: int) -> Match:
    found = []
    for chunk in torch.split(rows, max(1, _AT_ONCE // count)):
        values, indices = similarity(chunk).topk(min(2, count), dim=1)
        found.append((indices[:, 0], values[:, 0], values[:, 0] - values[:, -1]))
    best, top, margin = (torch.cat(part) for part in zip(*found, strict=True))
    return Match(best, top, margin)
