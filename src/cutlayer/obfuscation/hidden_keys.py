"""Keys of the hidden basis: the residual stream x of width d becomes xP̂ of width D.

A writer (embedding, attention output, FFN output) is multiplied by P̂, a reader (everything that consumes the normalised
stream) by Q̂ with P̂Q̂ = I. In a checkpoint's layout (out, in), a reader's rows w become wQ̂ᵀ and the rows of a writer's
transpose become wP̂; that is all the transformation asks of a key.

RMSNorm commutes with P̂ exactly if and only if P̂P̂ᵀ = s²I: `Isometric` and `Monomial` are exact, Algorithm 1 of the paper is not.

Notation: d plain hidden size, D hidden size of the export, N rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.types import Secret

    Rows = Callable[[torch.Tensor], torch.Tensor]


class HiddenKey(Protocol):
    """What a kind of hidden-basis key provides."""

    @property
    def kappa(self) -> float:
        """What the weight of every RMSNorm becomes: s√(d/D), since an unmodified engine averages over D values and not d."""
        ...

    def writer(self, label: str, dtype: torch.dtype) -> Rows:
        """Rows [N, d] → rows·P̂ [N, D] for the writer of this label, both of `dtype`."""
        ...

    def reader(self, label: str, dtype: torch.dtype) -> Rows:
        """Rows [N, d] → rows·Q̂ᵀ [N, D] for the reader of this label, both of `dtype`."""
        ...


class Isometric:
    """P̂ = s·Z[:d] with Z uniform in O(D) and s = √(D/d), so that κ = 1. Readers differ by junk that no state ever meets.

    Q̂ⱼ = s⁻¹Z[:d]ᵀ + Z[d:]ᵀJⱼ with fresh Jⱼ ~ N(0, 1/d): the states lie in the span of Z[:d], so Jⱼ changes no result, but two
    readers of an export with D > d no longer share a row space.

    Args:
        seed: of the export.
        d: plain hidden size.
        wide: D ≥ d.
    """

    kappa = 1.0

    def __init__(self, seed: Secret, d: int, wide: int) -> None:
        z = Stream(seed, "Z").orthogonal(wide)  # [D, D]
        z[:d] *= math.sqrt(wide / d)
        self._seed = seed
        self._p, self._spare = z[:d], z[d:]  # [d, D], [D − d, D]

    def writer(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.writer`; one P̂ for all writers."""
        return times(self._p, dtype)

    def reader(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.reader`."""
        d, spare = len(self._p), len(self._spare)
        if not spare:
            return times(self._p, dtype)
        junk = Stream(self._seed, f"{label}/junk").normal(d, spare) / math.sqrt(d)  # Jⱼᵀ
        return times(self._p * (d / (d + spare)) + junk @ self._spare, dtype)


class Monomial:
    """A permutation of the hidden channels with signs, D = d: all that commutes with a norm's weight between writer and stream.

    Args:
        order: source channel of each channel, int64, [d].
        signs: ±1 of each channel, float64, [d].
    """

    kappa = 1.0

    def __init__(self, order: torch.Tensor, signs: torch.Tensor) -> None:
        self.order = order
        self._signs = signs

    @classmethod
    def draw(cls, seed: Secret, d: int) -> Monomial:
        """The key of a seed."""
        stream = Stream(seed, "Z")
        return cls(stream.permutation(d), stream.signs(d))

    @classmethod
    def identity(cls, d: int) -> Monomial:
        """Leaves the hidden basis as it is, for exports without this component."""
        return cls(torch.arange(d), torch.ones(d, dtype=torch.float64))

    def writer(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.writer`."""
        signs = self._signs.to(dtype)
        return lambda rows: rows[:, self.order] * signs

    def reader(self, label: str, dtype: torch.dtype) -> Rows:
        """See `HiddenKey.reader`: P̂⁻¹ = P̂ᵀ."""
        return self.writer(label, dtype)


def times(key: torch.Tensor, dtype: torch.dtype) -> Rows:
    """Multiplication by a float64 key [d, D] in `dtype`."""
    converted = key.to(dtype)
    return lambda rows: rows @ converted
