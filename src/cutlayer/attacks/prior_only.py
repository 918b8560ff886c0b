"""No attack: what a language model writes without looking at anything but the length. The floor under every other figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind, NoOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.prior import Prior


class _PriorReader:
    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._written: list[tuple[int, float]] = []

    def read(self, observation: Observation) -> Guess:
        length = observation.released.shape[1]
        if len(self._written) < length:
            self._written = self._write(length)
        tokens, confidence = zip(*self._written[:length], strict=True)
        return Guess(torch.tensor(tokens), torch.tensor(confidence))

    def _write(self, length: int) -> list[tuple[int, float]]:
        tree = self._prior.session()
        log_probs = self._prior.first()
        written: list[tuple[int, float]] = []
        while len(written) < length:
            best = log_probs.max(-1)
            written.append((int(best.indices), float(best.values.exp())))
            log_probs = tree.extend([written[-1][0]], [len(written) - 2])[0]
        return written


def _prepare(options: NoOptions, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _PriorReader(given(threat.prior))


ATTACK: Final = AttackKind(
    AttackCard(
        name="prior-only",
        source="–",
        threat_model="Knows the language and how many tokens there are; sees no hidden state.",
        needs=frozenset({"prior"}),
        in_order=False,
        parameters={},
        deviations="Greedy text of the prior model, the same for every prompt; no published counterpart.",
        expected="A few per cent of tokens by chance.",
    ),
    NoOptions,
    _prepare,
)
