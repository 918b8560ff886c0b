"""What everybody knows about a defence: the law by which hidden states become what leaves.

A server is assumed to know the mechanism and its parameters; only keys and coins are secret. Attacks that use the law are
attacks adapted to the defence, the only ones by which it may be judged.

Notation: N sessions in which one prompt was sent, T positions, C candidates, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

EXACT_TOLERANCE: Final = 1e-3
"""`relative_length` below which two float32 computations of one hidden state are taken to agree. Batched and single forwards
differ by about 1e-6; the nearest other token is farther than 1e-2 on SmolLM2-135M at every depth that was looked at."""


class Channel(Protocol):
    """The law of what leaves at one position, given the hidden state there."""

    exact: bool
    """Whether acceptance leaves practically one candidate. Under strong noise wrong candidates are accepted too, and only
    comparing the likelihoods of many decides."""
    ordered: bool
    """Whether row t of what left is position t in every session. Where it is not, `estimate` brings the rows of all sessions
    into one order, nobody knows which."""

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """log p(released | candidate) up to a constant, [C].

        Args:
            released: what left at one position in N sessions, [N, D].
            candidates: hidden states that might have been there, [C, D].
        """
        ...

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Whether a candidate alone explains what left, so that a search may stop at it; [C] of bool.

        Args:
            released: [N, D].
            candidates: [C, D].
        """
        ...

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """A point estimate of the hidden states [T, D] from what left in N sessions [N, T, D]."""
        ...

    def transmitted(self, released: torch.Tensor) -> torch.Tensor:
        """Which coordinates carry a value at all, [T, D] of bool, from [N, T, D]."""
        ...


class Repeated:
    """What most channels share: sessions are averaged, and every coordinate carries a value."""

    exact = False
    ordered = True

    def estimate(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.estimate`."""
        return released.mean(0)

    def transmitted(self, released: torch.Tensor) -> torch.Tensor:
        """See `Channel.transmitted`."""
        return released.new_ones(released.shape[1:]).bool()


class Matching(Repeated, ABC):
    """No noise on the coordinates that carry a value: a candidate either agrees with them up to rounding or is wrong.

    Args:
        precision: relative rounding of the wire.
        exact: as `Channel.exact`. Four coordinates single out one token of 50 000 even at the tolerance of a bf16 wire; fewer,
            or a few levels each, do not, and then the likelihoods of those accepted differ by rounding alone.
    """

    def __init__(self, precision: float, exact: bool = True) -> None:
        self.tolerance = max(EXACT_TOLERANCE, precision)
        self.exact = exact

    @abstractmethod
    def distance(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """How far what left [N, D] is from all a candidate [C, D] could have released, over the length of what left, [C]."""

    def log_likelihood(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.log_likelihood`; Gaussian in the relative distance, as wide as the tolerance."""
        return -0.5 * (self.distance(released, candidates) / self.tolerance) ** 2

    def accepts(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Channel.accepts`."""
        return self.distance(released, candidates) <= self.tolerance


class Deterministic(Matching):
    """A public function of the hidden state: run it on every candidate and compare. It protects nothing by itself.

    Args:
        apply: the function, [C, D] → [C, D]; continuous, or a candidate computed with another rounding may miss itself.
        precision: relative rounding of the wire.
        exact: as `Matching`.
    """

    def __init__(self, apply: Callable[[torch.Tensor], torch.Tensor], precision: float, exact: bool = True) -> None:
        super().__init__(precision, exact)
        self._apply = apply

    def distance(self, released: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `Matching.distance`."""
        target = released.mean(0)  # [D]
        return relative_length(self._apply(candidates) - target, target)


def relative_length(rows: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Root mean square of rows [C, D] in units of a vector [D], coordinate by coordinate, over those it carries; [C].

    The unit of a coordinate is its own size plus the median one. Not the vector's length: an attention sink owes nearly all
    of that to a few coordinates which are alike for every token. Over its length, the states of two tokens after 15 layers of
    SmolLM2-135M differ by 0.4 %, as much as a bf16 wire rounds; in these units by 2 % or more, and rounding is below 0.1 %.
    """
    sizes = of.abs()
    carried = sizes > 0
    if not bool(carried.any()):
        lengths: torch.Tensor = rows.norm(dim=-1)
        return lengths
    unit = sizes + sizes[carried].median()
    squares: torch.Tensor = (rows / unit).square().sum(-1)
    return (squares / carried.sum()).sqrt()
