"""How much of what can be read at all an attack reads beyond what its decoder would have written anyway.

Adv = (A − A_prior) / (1 − A_prior), with A_prior the same metric of a baseline that sees no hidden state. Without it, 35 %
of tokens read may mean just the language. Negative values are shown as they are: the attack is worse than not looking.

The definition is derived: no published counterpart.

Notation: n documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cutlayer.audit.metrics.documents import TAILS, measured, resamples, spread
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence


def advantage(
    values: Sequence[float | None],
    prior: Sequence[float | None],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Figure | Unmeasured:
    """The advantage with a 95 % interval over documents, resampled together: attack and baseline face the same ones.

    Args:
        values: [n], the attack's, each in [0, 1]; documents where either is None are left out.
        prior: [n], the baseline's on the same documents.
        weights: [n]; None weighs documents alike.
        seed: of the resampling.

    Raises:
        InputError: lengths differ, or something is negative, above 1 or not finite.
    """
    if len(prior) != len(values):
        raise InputError(f"{len(prior)} baseline values for {len(values)} documents; give one each")
    both = [a is not None and b is not None for a, b in zip(values, prior, strict=True)]
    attack, share = measured([a if there else None for a, there in zip(values, both, strict=True)], weights)
    floor, _ = measured([b if there else None for b, there in zip(prior, both, strict=True)], weights)
    if not len(attack):
        return Unmeasured("no document has a value of both attack and baseline")
    reached, known = float(attack @ share / share.sum()), float(floor @ share / share.sum())
    if np.all(floor == 1):
        return Unmeasured("the baseline alone reads everything")
    if np.ptp(attack) == 0:
        # The attack does not vary: what is uncertain is its level, see `documents`.
        low, high = ((bound - known) / (1 - known) for bound in spread(attack, share, seed))
    else:
        counts = resamples(len(attack), seed)  # [R, n]
        mass, left = counts @ share, counts @ ((1 - floor) * share)  # [R]
        possible = left > 0
        drawn = 1 - (mass - counts @ (attack * share))[possible] / left[possible]
        low, high = (float(bound) for bound in np.quantile(drawn, TAILS))
    return Figure((reached - known) / (1 - known), low, high, len(attack), "fraction")
