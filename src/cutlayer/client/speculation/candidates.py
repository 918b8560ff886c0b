"""What the model said after a context when that context was last verified.

Notation: T rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.client.speculation.mixture import NOTHING, Opinion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cutlayer.client.speculation.speculator import Verified

WIDTH: Final = 12
"""Candidates kept per context."""
_TAKEN: Final = 8
"""Candidates taken from a row of logits."""
_OLD: Final = 0.5
"""Share of what was known before; what the model says in one place is only part of what it says after these tokens."""
_LEAST: Final = 1e-4
"""Probability below which a candidate is not worth its place."""
CAPACITY: Final = 1 << 15
"""Contexts held; the one not verified for longest goes first."""
_BLOCK: Final = 64


class Candidates:
    """Contexts of 1 … `longest` tokens → what followed, with probabilities.

    Args:
        longest: tokens of the longest context.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._held: dict[tuple[int, ...], Opinion] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, context: tuple[int, ...]) -> Opinion:
        """Candidates after exactly this context, likeliest first; empty if it was never verified."""
        return self._held.get(context, NOTHING)

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """Take in every row, rejected ones too: the model was asked, and what it said is true."""
        tokens, probabilities = likeliest(seen.logits, _TAKEN)  # [T, K]
        for context, row, p in zip(contexts, tokens.tolist(), probabilities.tolist(), strict=True):
            said = {token: chance for token, chance in zip(row, p, strict=True) if chance >= _LEAST}
            for length in range(1, min(self.longest, len(context)) + 1):
                self.put(context[-length:], said)

    def put(self, context: tuple[int, ...], candidates: Mapping[int, float]) -> None:
        """Note what followed; averaged with what followed before."""
        before = self._held.pop(context, None)
        if before is not None:
            merged = {token: (1 - _OLD) * p for token, p in candidates.items()}
            for token, p in before.items():
                merged[token] = merged.get(token, 0.0) + _OLD * p
            best = sorted(merged.items(), key=lambda item: -item[1])[:WIDTH]
            candidates = {token: p for token, p in best if p >= _LEAST}
        elif len(self._held) >= CAPACITY:
            del self._held[next(iter(self._held))]
        self._held[context] = Opinion(candidates)

    def close(self) -> None:
        """The session is over."""

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], Opinion]]:
        """Contexts and their candidates, those verified last at the end."""
        return iter(self._held.items())


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of highest probability and their probabilities, each [T, K], likeliest first.

    Exact: the K highest lie in the K blocks of highest maximum, so no more than those are searched.

    Args:
        logits: [T, V] of any floating dtype; probabilities are in float32.
        count: K, at most V.
    """
    rows, vocabulary = logits.shape
    whole = vocabulary - vocabulary % _BLOCK
    in_blocks = whole >= count * _BLOCK
    normalisers, maxima = [], []
    for few in torch.split(logits, 2):  # a few rows at a time stay in the processor's cache
        exact = few.float()
        normalisers.append(exact.logsumexp(-1, keepdim=True))
        if in_blocks:
            maxima.append(exact[:, :whole].view(len(few), -1, _BLOCK).amax(-1))
    normaliser = torch.cat(normalisers)  # [T, 1]
    if not in_blocks:
        values, tokens = logits.topk(min(count, vocabulary))  # [T, K]
        return tokens, (values.float() - normaliser).exp()
    starts = torch.cat(maxima).topk(count).indices[:, :, None] * _BLOCK  # [T, K, 1] of [T, V/B]
    inside, rest = torch.arange(_BLOCK), torch.arange(whole, vocabulary)
    places = torch.cat([(starts + inside).flatten(1), rest.expand(rows, -1)], dim=1)  # [T, K·B + V mod B]
    values, at = logits.gather(1, places).topk(count)
    return places.gather(1, at), (values.float() - normaliser).exp()
