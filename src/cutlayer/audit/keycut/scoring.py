"""Claims against τ.

Three shares: of the vocabulary (a uniform sample of ids), of the traffic (tokens of the documents that were sent, since frequent
ids matter most), and of what was named (whether an attack that names little names it right). An id that is not named counts as
missed in the first two. Ids the attacker was given are left out of all.

Notation: V vocabulary, N claimed ids, S sampled ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cutlayer.audit.metrics.documents import RESAMPLES, TAILS, over_documents
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure, proportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from cutlayer.attacks.keycut.attack import Claim
    from cutlayer.obfuscation.tau import Ids

SHARES: Final = ("ids", "occurrences", "named")


class Truth:
    """What claims are scored against.

    Args:
        inverse: τ⁻¹, [V].
        sample: permuted ids on which the share of the vocabulary is estimated, [S].
        documents: sent to the host, in plain ids.
        known: plain ids that the attacker was given.

    Raises:
        InputError: the sample is empty, or holds an id that was given.
    """

    def __init__(
        self, inverse: Ids, sample: Sequence[int], documents: Sequence[Sequence[int]], known: Sequence[int] = ()
    ) -> None:
        given = set(known)
        if not len(sample) or given & {int(inverse[token]) for token in sample}:
            raise InputError("claims are scored on ids that the attacker was not given, and on at least one")
        self._inverse = inverse.astype(np.int64)
        self._sample = np.asarray(sample, dtype=np.int64)
        self._documents = [[token for token in document if token not in given] for document in documents]

    def score(self, claim: Claim) -> dict[str, Figure | Unmeasured]:
        """`SHARES` with 95 % intervals: over ids for the first and last, over documents for the traffic.

        Raises:
            InputError: the claim names ids that do not exist.
        """
        ids, plain = _array(claim.ids), _array(claim.plain)
        vocabulary = len(self._inverse)
        if len(ids) != len(plain) or np.any((ids < 0) | (ids >= vocabulary)) or np.any(plain >= vocabulary):
            raise InputError(f"a claim names ids outside a vocabulary of {vocabulary}")
        right = np.zeros(vocabulary, dtype=bool)  # by permuted id
        right[ids] = self._inverse[ids] == plain
        read = np.zeros(vocabulary, dtype=bool)  # by plain id
        read[self._inverse] = right
        named = right[ids[plain >= 0]]
        shares = [float(read[document].mean()) if document else None for document in self._documents]
        return {
            "ids": share_of_ids(right[self._sample]),
            "occurrences": over_documents(shares, [len(document) for document in self._documents]),
            "named": share_of_ids(named) if len(named) else Unmeasured("the attack names no id"),
        }


def share_of_ids(right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Figure:
    """Share of N ids, with a 95 % percentile-bootstrap interval; Wilson's where all are alike and nothing varies.

    Raises:
        ValueError: no ids.
    """
    n, hits = len(right), int(right.sum())
    if hits in (0, n):
        return proportion(hits, n)
    # drawing n of n values with replacement and counting hits is drawing from a binomial
    low, high = np.quantile(np.random.default_rng(0).binomial(n, hits / n, RESAMPLES) / n, TAILS)
    return Figure(hits / n, float(low), float(high), n, "fraction")


def _array(tokens: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray(tokens.tolist(), dtype=np.int64)
