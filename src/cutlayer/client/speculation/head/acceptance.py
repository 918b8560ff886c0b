"""How many tokens a round trip would bring with the head's chains, on texts the model said itself.

Exact for a chain of likeliest guesses, without generating anything: the head is unrolled over the finished answer, and the round
trips are walked along it. A trip from the last known token s brings the guesses that agree with what was said, and one more.

Notation: B batch, T tokens, N answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cutlayer.client.speculation.head.examples import batch_of
from cutlayer.client.speculation.head.unroll import unroll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.head.examples import Example
    from cutlayer.client.speculation.head.network import DraftHead


class Walk(NamedTuple):
    """Round trips along one answer."""

    tokens: int
    trips: int


@torch.inference_mode()
def walks(head: DraftHead, examples: Sequence[Example], depth: int, batch: int = 8) -> list[Walk]:
    """Round trips [N] with chains of `depth` guesses; answers too short for one are left out."""
    found: list[Walk] = []
    for start in range(0, len(examples), batch):
        texts = batch_of(examples[start : start + batch])
        said = texts.ids[:, 1:]  # [B, T − 1]
        right = torch.stack(
            [
                head.vocabulary[logits[:, :-1].argmax(-1)] == said
                for logits in unroll(head, texts.ids, texts.returned, depth)
            ]
        )  # [depth, B, T − 1]
        for row, (answer, length) in enumerate(zip(texts.answers, texts.lengths, strict=True)):
            hits = right[:, row, : length - 1].T.tolist()  # [T − 1][depth]
            if length - 1 > answer:
                found.append(_walk(hits, answer))
    return found


def tokens_per_trip(walked: Sequence[Walk]) -> float:
    """Mean over all round trips."""
    return sum(walk.tokens for walk in walked) / sum(walk.trips for walk in walked)


def _walk(hits: list[list[bool]], start: int) -> Walk:
    """`hits` [T − 1][depth]: whether the guess after position i is right, made d guesses after the last known token."""
    at, trips, end = start, 0, len(hits)
    while at < end:
        accepted = 0
        while accepted < len(hits[0]) and at + accepted < end and hits[at + accepted][accepted]:
            accepted += 1
        at += accepted + 1
        trips += 1
    return Walk(min(at, end) - start, trips)
