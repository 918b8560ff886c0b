"""All secrets of a layer but the hidden basis act on rows: they reorder them, mix the rows of a head, scale them.

    ỹ = diag(scale) · blockdiag(mix) · y[order]

One such map serves weights of shape (out, in), the transposed weights of writers, and biases.

Notation: F rows, c rows per block (the dimension of a head), n columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class RowMap(NamedTuple):
    """See the module.

    Args:
        order: source row of each row, int64, [F].
        mix: one matrix per block of rows after reordering, float64, [F/c, c, c], or None.
        scale: factor of each row, float64, [F], or None.
    """

    order: torch.Tensor
    mix: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    @classmethod
    def identity(cls, rows: int) -> RowMap:
        """Leaves `rows` rows as they are."""
        return cls(torch.arange(rows))

    def pieces(self, at_once: int) -> Iterator[slice]:
        """Ranges of rows, about `at_once` each, that contain whole blocks."""
        block = 1 if self.mix is None else self.mix.shape[-1]
        step = max(1, at_once // block) * block
        for start in range(0, len(self.order), step):
            yield slice(start, min(start + step, len(self.order)))

    def __call__(self, source: torch.Tensor, piece: slice, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The rows of `piece`, [rows, n].

        Args:
            source: all rows as they are in the base, [F, n].
            piece: one of `pieces`.
            dtype: to compute and return in.
        """
        rows = source[self.order[piece]].to(dtype)  # [rows, n]
        if self.mix is not None:
            c = self.mix.shape[-1]
            blocks = self.mix[piece.start // c : piece.stop // c].to(dtype)  # [rows/c, c, c]
            rows = torch.bmm(blocks, rows.reshape(len(blocks), c, -1)).reshape(len(rows), -1)
        if self.scale is not None:
            rows = rows * self.scale[piece, None].to(dtype)
        return rows

    def whole(self, source: torch.Tensor) -> torch.Tensor:
        """All rows of a vector, float64, [F]."""
        return self(source[:, None], slice(0, len(self.order)))[:, 0]
