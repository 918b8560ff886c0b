"""The vocabulary-matching attack: every next token a language model can think of, until one gives a state that left.

Left to right, candidates in the model's order are run through the attacker's copy of the layers, a batch at a time, and
held against what left by the defence's own law. Where positions leave in a secret order, they are held against every row
that no token has been found for, so that the prompt is rebuilt from its beginning in the right order.

Notation: B prompts, N sessions, T positions, R rows not yet matched, C candidates, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import torch

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.tree import TreeForward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.defences.channel import Channel


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _VocabularyReader:
    def __init__(self, threat: Threat, options: _Options) -> None:
        self._threat = threat
        self._options = options
        self._first = given(threat.prior).first()  # [V]

    def read(self, observation: Observation) -> Guess:
        return self.read_many([observation])[0]

    def read_many(self, observations: Sequence[Observation]) -> list[Guess]:
        """Guess several prompts as one forest: a batch of each in every forward, each at its own pace."""
        prompts = [_Prompt(self._threat.channel, self._options, seen.released) for seen in observations]
        states, language = TreeForward(given(self._threat.head)), given(self._threat.prior).session()
        for prompt in prompts:
            prompt.follow(-1, self._first)
        while active := [prompt for prompt in prompts if prompt.unmatched]:
            held = len(states)
            batches = [prompt.candidates() for prompt in active]
            counts = [len(batch) for batch in batches]
            parents = [prompt.node for prompt, count in zip(active, counts, strict=True) for _ in range(count)]
            rows = torch.split(states.extend([token for batch in batches for token in batch], parents), counts)
            states.keep(range(held))
            matched = [prompt for prompt, each in zip(active, rows, strict=True) if prompt.matches(each)]
            if matched:
                tokens, parents = [prompt.tokens[-1] for prompt in matched], [prompt.node for prompt in matched]
                states.extend(tokens, parents)
                expected = language.extend(tokens, parents)  # [B, V]; both trees hold the same nodes
                for node, (prompt, each) in enumerate(zip(matched, expected, strict=True), start=held):
                    prompt.follow(node, each)
        return [prompt.guess() for prompt in prompts]


class _Match(NamedTuple):
    """A candidate and the row it fits best."""

    score: float
    token: int
    row: int
    accepted: bool


class _Prompt:
    """The attack on one prompt: what has been found, and what is tried next."""

    def __init__(self, channel: Channel, options: _Options, released: torch.Tensor) -> None:
        self._channel = channel
        self._options = options
        # Sessions shuffled differently agree on a row only once they have been aligned.
        self._released = released if channel.ordered else channel.estimate(released)[None]  # [N, T, D]
        self.unmatched = list(range(released.shape[1]))
        self.tokens: list[int] = []
        self.node = -1
        """Of the last token, in the trees."""
        self._confidence: list[float] = []
        self._ranked: list[int] = []
        self._tried = 0
        self._best: _Match | None = None
        self._evaluated = 0

    def follow(self, node: int, expected: torch.Tensor) -> None:
        """Go on after a node, where a language model expects [V]."""
        most = min(self._options.limit or len(expected), len(expected))
        self.node, self._ranked, self._tried, self._best = node, expected.topk(most).indices.tolist(), 0, None

    def candidates(self) -> list[int]:
        """The next batch."""
        return self._ranked[self._tried : self._tried + self._options.batch]

    def matches(self, states: torch.Tensor) -> bool:
        """Whether the batch's states [C, D] settle the next token: by one that is accepted, or because they are the last."""
        found = self._fitting(states)
        self._best = found if found.accepted else max(self._best or found, found)
        self._tried += len(states)
        if not found.accepted and self._tried < len(self._ranked):
            return False
        self.tokens.append(self._best.token)
        self._confidence.append(float(self._best.accepted))
        self.unmatched.remove(self._best.row)
        self._evaluated += self._tried
        return True

    def _fitting(self, states: torch.Tensor) -> _Match:
        rows = self.unmatched[:1] if self._channel.ordered else self.unmatched
        scores = torch.stack([self._channel.log_likelihood(self._released[:, row], states) for row in rows])  # [R, C]
        place, which = divmod(int(scores.argmax()), len(states))
        accepted = self._channel.accepts(self._released[:, rows[place]], states[which : which + 1])
        return _Match(float(scores[place, which]), self.candidates()[which], rows[place], bool(accepted))

    def guess(self) -> Guess:
        """What was read."""
        return Guess(torch.tensor(self.tokens), torch.tensor(self._confidence), {"candidates": float(self._evaluated)})


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _VocabularyReader(threat, options)


ATTACK: Final = AttackKind(
    AttackCard(
        name="vma",
        source="Thomas et al. 2025, Hidden No More (arXiv 2505.18332), numbers read second-hand",
        threat_model=(
            "Holds the client's first layers (public weights) and a language model; sees every position's state, its "
            "coordinates or its positions possibly in a secret order."
        ),
        needs=frozenset({"head", "prior"}),
        in_order=False,
        parameters={
            "batch": "candidates of one prompt run and compared at once",
            "limit": "most candidates tried at a position, default the whole vocabulary",
        },
        deviations=(
            "Compared by the defence's likelihood, relative to the size of each coordinate, instead of L1; accepted within the "
            "tolerance of the wire instead of a radius searched on 50 calibration samples. "
            "The likeliest of all tried where none is accepted. Several prompts are read in one forward."
        ),
        expected=(
            "Undefended 100 % of prompts exact; coordinates and positions shuffled 99.9, 99.5, 99.1, 99.0 % (Gemma-2-2B, layers "
            "1, 11, 21, 26) and 98.4, 98.9, 98.0, 97.6 % (Llama-3.1-8B); about 100 candidates per token."
        ),
    ),
    _Options,
    _prepare,
)
