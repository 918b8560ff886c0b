"""Trees of a network: it is called again only for guesses that may pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cutlayer.client.speculation.head.beam import grow

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCABULARY = torch.arange(40)


def test_only_likely_guesses_are_gone_on_from() -> None:
    asked: list[list[int]] = []

    def advance(guesses: Sequence[tuple[int, int]]) -> torch.Tensor:
        asked.append([token for token, _ in guesses])
        return torch.zeros(len(guesses), 40)  # each of 40 as likely: one in forty

    sure = torch.full((40,), -9.0)
    sure[7], sure[3] = 5.0, 4.0
    draft = grow(sure, VOCABULARY, advance, most=60, breadth=4, depth=5)
    assert asked == [[7, 3]]  # and not from what follows those
    assert len(draft) == 4 + 2 * 4


def test_a_network_that_knows_nothing_is_asked_once() -> None:
    def advance(guesses: Sequence[tuple[int, int]]) -> torch.Tensor:
        raise AssertionError(guesses)

    assert len(grow(torch.zeros(40), VOCABULARY, advance, most=60, breadth=4, depth=5)) == 4
