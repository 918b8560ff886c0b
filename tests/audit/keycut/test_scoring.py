"""Scores of the key cut: known answers, misses that count as misses, intervals, and what has no score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.attacks.keycut.attack import Claim
from cutlayer.audit.keycut.scoring import SHARES, Truth, share_of_ids
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.records.record import Figure

V = 50
INVERSE = np.random.default_rng(0).permutation(V).astype(np.uint32)


def truth(documents: list[list[int]], sample: list[int] | None = None, known: tuple[int, ...] = ()) -> Truth:
    return Truth(INVERSE, list(range(V)) if sample is None else sample, documents, known)


def claim(ids: list[int], plain: list[int]) -> Claim:
    return Claim(torch.tensor(ids), torch.tensor(plain))


def values(found: dict[str, Figure | Unmeasured]) -> list[float]:
    return [found[share].value for share in SHARES]  # type: ignore[union-attr]


def test_the_truth_scores_one_in_all() -> None:
    found = truth([[1, 2, 3], [4]]).score(claim(list(range(V)), INVERSE.tolist()))
    assert values(found) == [1, 1, 1]
    assert all(figure.low < 1 for figure in found.values())  # type: ignore[union-attr] # a few right ones are no certainty


def test_what_is_not_named_is_missed_but_not_wrong() -> None:
    """Half of the ids named, all rightly; one of them makes up three quarters of the text."""
    common, rare = (int(INVERSE[0]), int(INVERSE[40]))
    found = truth([[common] * 3 + [rare]] * 5).score(
        claim(list(range(V)), [int(INVERSE[i]) if i < 25 else -1 for i in range(V)])
    )
    assert values(found) == [0.5, 0.75, 1]


def test_ids_that_no_claim_mentions_are_missed() -> None:
    assert values(truth([[int(INVERSE[3]), int(INVERSE[4])]]).score(claim([3], [int(INVERSE[3])]))) == [1 / V, 0.5, 1]


def test_the_share_of_the_vocabulary_is_that_of_the_sample() -> None:
    found = truth([[1]], sample=[0, 1, 2, 3]).score(
        claim([0, 1, 9], [int(INVERSE[0]), (int(INVERSE[1]) + 1) % V, int(INVERSE[9])])
    )
    assert values(found)[0] == 0.25
    assert found["ids"].n == 4  # type: ignore[union-attr]


def test_known_ids_count_nowhere() -> None:
    known = int(INVERSE[7])
    scored = truth([[known, known, int(INVERSE[8])]], sample=[8], known=(known,))
    assert values(scored.score(claim([8], [int(INVERSE[8])]))) == [1, 1, 1]
    with pytest.raises(InputError, match="not given"):
        truth([[1]], sample=[7], known=(known,))


def test_an_attack_that_names_nothing_has_no_precision() -> None:
    found = truth([[1, 2]]).score(claim([1, 2], [-1, -1]))
    assert found["ids"].value == 0  # type: ignore[union-attr]
    assert isinstance(found["named"], Unmeasured)


def test_no_text_is_no_share_of_text() -> None:
    assert isinstance(truth([]).score(claim([1], [2]))["occurrences"], Unmeasured)


@pytest.mark.parametrize("wrong", [claim([V], [0]), claim([-1], [0]), claim([0], [V])])
def test_ids_outside_the_vocabulary_are_refused(wrong: Claim) -> None:
    with pytest.raises(InputError, match=f"vocabulary of {V}"):
        truth([[1]]).score(wrong)


@given(st.lists(st.booleans(), min_size=2, max_size=300))
def test_the_interval_is_that_of_resampled_ids(right: list[bool]) -> None:
    data = np.array(right)
    found = share_of_ids(data)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == data.mean()
    if 0 < data.mean() < 1:
        drawn = np.random.default_rng(1).choice(data, size=(4000, len(data))).mean(1)
        tolerance = 4 * data.std() / len(data) ** 0.5 / 10 + 1.01 / len(data)
        assert abs(found.low - np.quantile(drawn, 0.025)) <= tolerance
        assert abs(found.high - np.quantile(drawn, 0.975)) <= tolerance
