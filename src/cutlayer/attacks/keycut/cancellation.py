"""Cross-layer cancellation: an export's secret channel order, and with it the hidden keys, from a product without keys.

    Y = W̃_down⁽ˡ⁾ · W̃_gate⁽ᵐ⁾ᵀ = S_l⁻¹Z_l · [W_down⁽ˡ⁾ W_gate⁽ᵐ⁾ᵀ] · Z_mᵀ                      since P̂Q̂ = I

holds for any layers l, m: a writer times a reader contains no hidden key, and noise is on neither. The public product X has
the same rows and columns in another order and, by S, of another length.

1. Rows of unit length, sorted, do not see Z_m: matching those of Y to those of X gives Z_l.
2. With rows in order, columns match as they are and give Z_m; with columns in order, rows match as they are. Alternating
   repairs what sorting got wrong when weights are quantised, noisy or fine-tuned.
3. Aligned gates and downs are linear equations for the keys: W̃_gate = W_gateQ̂ᵀ, W̃_down = W_downP̂.
4. With keys, other layers align at once, and the equations of all of them together give better keys.

Source: derived and measured by this project; the published evaluation does not consider the product.

Notation: d plain hidden size, D that of the export, F, G channels of two layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.attacks.keycut.matching import closest, most_similar, sorted_rows, unit
from cutlayer.obfuscation.layout import Role

if TYPE_CHECKING:
    from cutlayer.attacks.keycut.weights import Weights

_ROUNDS: Final = 8
_SINGULAR: Final = 1e-12
"""Added to the diagonal, as a share of its mean: least squares of fewer rows than unknowns still have a solution."""
_SURE: Final = 0.9
"""Mean cosine of aligned products at which no other pair of layers is tried."""


class Order(NamedTuple):
    """Channels of two layers, named."""

    down: torch.Tensor
    """[F] base channel of each channel of the export in the writing layer."""
    gate: torch.Tensor
    """[G] the same in the reading layer."""
    cosine: float
    """Mean cosine of aligned rows: 1 for the right base without noise, near 0 for a wrong base."""
    distinct: float
    """Share of the base's channels that are named: 1 for a permutation."""


class Key(NamedTuple):
    """What undoes one hidden key, as far as it could be told from noise: obfuscated·undo ≈ plain·seen."""

    undo: torch.Tensor
    """[D, d]"""
    seen: torch.Tensor
    """[d, d], 1 where weights are exact; it shrinks directions that rounded weights leave undecided."""


class Keys(NamedTuple):
    """What undoes the hidden keys."""

    stream: Key
    """About Q̂: states and writers' rows (embedding included) to the plain basis."""
    reader: Key
    """About P̂ᵀ: readers' rows (output head included) to the plain basis."""
    order: Order
    """Of the pair of layers it began with."""


def cancel(base: Weights, export: Weights, layers: int) -> Keys:
    """Recover the keys.

    Args:
        base: the public model.
        export: of it, supposedly; for another model `Order.cosine` and `Order.distinct` stay low.
        layers: how many layers' equations to use in the end.
    """
    last = base.layers - 1
    order, writing, reading = _first_order(base, export, [(0, last // 2), (last // 2, last), (last, 0)])
    gate, plain = export.rows(Role.GATE, reading), base.rows(Role.GATE, reading)
    stream = _solve([(plain[order.gate], gate)])
    down, plain = export.rows(Role.DOWN, writing), base.rows(Role.DOWN, writing)
    reader = _solve([(plain[order.down], _unscaled(down, plain[order.down], stream))])
    gates, downs = [], []
    for layer in sorted({round(last * i / max(1, layers - 1)) for i in range(layers)}):
        gate, plain = export.rows(Role.GATE, layer), base.rows(Role.GATE, layer)
        channels = most_similar(unit(gate @ reader.undo), unit(plain @ reader.seen)).best  # [F]
        gates.append((plain[channels], gate))
        down, plain = export.rows(Role.DOWN, layer), base.rows(Role.DOWN, layer)
        downs.append((plain[channels], _unscaled(down, plain[channels], stream)))
    return Keys(_solve(gates), _solve(downs), order)


def _first_order(base: Weights, export: Weights, pairs: list[tuple[int, int]]) -> tuple[Order, int, int]:
    """The best aligned of some pairs of a writing and a reading layer."""
    found = []
    for writing, reading in dict.fromkeys(pairs):
        products = [one.rows(Role.DOWN, writing) @ one.rows(Role.GATE, reading).T for one in (base, export)]  # [F, G]
        found.append((align(*products), writing, reading))
        if found[-1][0].cosine > _SURE:
            break
    return max(found, key=lambda one: one[0].cosine)


def align(x: torch.Tensor, y: torch.Tensor) -> Order:
    """Name rows and columns of `y` [F, G], which is `x` [F, G] with rows and columns permuted and rows scaled."""
    x, y = unit(x), unit(y)
    rows = closest(sorted_rows(y), sorted_rows(x)).best  # [F]
    columns = torch.empty(0, dtype=torch.int64)
    cosine = torch.zeros(())
    for _ in range(_ROUNDS):
        columns = most_similar(unit(y.T), unit(x[rows].T)).best  # [G]
        again = most_similar(y, x[:, columns])
        settled = torch.equal(again.best, rows)
        rows, cosine = again.best, again.similarity.mean()
        if settled:
            break
    distinct = (len(set(rows.tolist())) + len(set(columns.tolist()))) / (len(x) + x.shape[1])
    return Order(rows, columns, float(cosine), distinct)


def _unscaled(down: torch.Tensor, plain: torch.Tensor, stream: Key) -> torch.Tensor:
    """Rows [F, D] without their secret scale: brought to the plain basis they are as long as the base's [F, d]."""
    lengths = (down @ stream.undo).norm(dim=1).clamp_min(1e-30)
    ratio: torch.Tensor = (plain @ stream.seen).norm(dim=1) / lengths
    return down * ratio[:, None]


def _solve(equations: list[tuple[torch.Tensor, torch.Tensor]]) -> Key:
    """K of obfuscated = plain·Kᵀ + noise, from pairs of [F, d] and [F, D], one for each layer.

    Ridge regression. The noise is what least squares leave over within each layer: between layers, readers of a wide export
    also differ by junk that no state ever meets. The prior is that the rows of Kᵀ are about as long as the median one.
    """
    d, wide = equations[0][0].shape[1], equations[0][1].shape[1]
    gram, mixed = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, wide, dtype=torch.float64)
    left, free = 0.0, 1
    for plain, obfuscated in equations:
        exact, other = plain.double(), obfuscated.double()  # squaring loses half of the digits
        own, cross = exact.T @ exact, exact.T @ other
        own.diagonal().add_(_SINGULAR * own.diagonal().mean())
        left += max(0.0, float(other.square().sum() - (torch.linalg.solve(own, cross) * cross).sum()))
        free += wide * max(0, len(plain) - d)
        gram += own
        mixed += cross
    prior = float(torch.linalg.solve(gram, mixed).square().mean(1).median())
    shrunk = gram.clone()
    shrunk.diagonal().add_(left / free / max(prior, 1e-30))
    undo, seen = torch.linalg.solve(shrunk, mixed), torch.linalg.solve(shrunk, gram)
    return Key(undo.T.float(), seen.T.float())
