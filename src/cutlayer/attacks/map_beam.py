"""Maximum a posteriori decoding by beam search: the defence's likelihood times a language model's prior.

x̂ = argmax_x log p_D(y_1..y_T | F_k(x)) + γ log p_LM(x), left to right, a few hypotheses at a time. Later positions correct
earlier ones, because every hidden state also depends on all tokens before it.

Notation: N sessions, T positions, B beams, C candidates, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import torch

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.proposals import Proposals
from cutlayer.attacks.tree import TreeForward

if TYPE_CHECKING:
    from collections.abc import Callable


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    beams: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    proposals: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 192
    gamma: Annotated[float, msgspec.Meta(ge=0, le=10)] = 1.0


class _Beam(NamedTuple):
    """One hypothesis."""

    tokens: tuple[int, ...]
    score: float
    confidence: tuple[float, ...]
    node: int
    """Its last token in both trees; −1 at the beginning."""


class _BeamReader:
    def __init__(self, threat: Threat, options: _Options) -> None:
        self._threat = threat
        self._options = options
        self._proposals = Proposals(threat)
        self._first = given(threat.prior).first()  # [V]

    def read(self, observation: Observation) -> Guess:
        return _Decoding(self._threat, self._options, self._proposals, self._first, observation.released).run()


class _Decoding:
    """The decoding of one prompt."""

    def __init__(
        self, threat: Threat, options: _Options, proposals: Proposals, first: torch.Tensor, released: torch.Tensor
    ) -> None:
        self._channel = threat.channel
        self._options = options
        self._released = released
        self._proposed = proposals.log_probs(released)  # [T, V]
        self._states = TreeForward(given(threat.head))
        self._language = given(threat.prior).session()
        # Both trees hold the same nodes: what survives, in order of age.
        self._beams = [_Beam((), 0.0, (), -1)]  # best first
        self._paths: dict[int, list[int]] = {-1: []}  # node → its ancestors and itself
        self._expected = options.gamma * first[None]  # [B, V]
        self._evaluated = 0

    def run(self) -> Guess:
        for t in range(self._released.shape[1]):
            self._step(t)
        winner = self._beams[0]
        effort = {"candidates": float(self._evaluated)}
        return Guess(torch.tensor(winner.tokens), torch.tensor(winner.confidence), effort)

    def _step(self, t: int) -> None:
        """Extend every beam by one token."""
        held = len(self._states)
        tokens = self._candidates(t)
        parents = [0] * len(tokens)
        likelihood = self._likelihood(t, parents, tokens)  # [C]
        if len(self._beams) > 1:
            # Another beam's past changes the likelihoods a little, so what fits the best beam is what others should try.
            each = min(len(tokens), max(1, self._options.proposals // (len(self._beams) - 1)))
            others = (likelihood + self._expected[1:, tokens]).topk(each, dim=-1).indices  # [B − 1, each]
            more = [tokens[i] for i in others.flatten().tolist()]
            theirs = [beam for beam in range(1, len(self._beams)) for _ in range(each)]
            likelihood = torch.cat([likelihood, self._likelihood(t, theirs, more)])
            tokens, parents = tokens + more, parents + theirs
        scores = torch.tensor([self._beams[b].score for b in parents]) + likelihood + self._expected[parents, tokens]
        best = scores.topk(min(self._options.beams, len(scores))).indices.tolist()
        self._survive(held, best, parents, tokens, scores)

    def _likelihood(self, t: int, parents: list[int], tokens: list[int]) -> torch.Tensor:
        """log p(what left | the candidate), [C]; candidates become nodes of the tree of states."""
        self._evaluated += len(tokens)
        hidden = self._states.extend(tokens, [self._beams[b].node for b in parents])  # [C, D]
        return self._channel.log_likelihood(self._released[:, t], hidden)

    def _survive(self, held: int, best: list[int], parents: list[int], tokens: list[int], scores: torch.Tensor) -> None:
        """Keep the `best` of the candidates, nodes `held` and up, and their ancestors."""
        shares = torch.softmax(scores, dim=0)
        survivors = sorted(best)
        kept = sorted({node for i in survivors for node in self._paths[self._beams[parents[i]].node]})
        self._states.keep([*kept, *(held + i for i in survivors)])
        self._language.keep(kept)
        renumbered = {-1: -1, **{node: i for i, node in enumerate(kept)}}
        grown: dict[int, _Beam] = {}
        paths: dict[int, list[int]] = {}
        for place, i in enumerate(survivors, start=len(kept)):
            beam = self._beams[parents[i]]
            paths[place] = [*(renumbered[node] for node in self._paths[beam.node]), place]
            confidence = (*beam.confidence, float(shares[i]))
            grown[i] = _Beam((*beam.tokens, tokens[i]), float(scores[i]), confidence, place)
        above = [renumbered[self._beams[parents[i]].node] for i in survivors]
        expected = self._options.gamma * self._language.extend([tokens[i] for i in survivors], above)
        order = [survivors.index(i) for i in best]
        self._beams, self._paths, self._expected = [grown[i] for i in best], paths, expected[order]

    def _candidates(self, t: int) -> list[int]:
        """Tokens to try after the best beam: those that fit what left, and those that fit the language as well."""
        half = max(1, self._options.proposals // 2)
        count = min(half, self._proposed.shape[1])
        fitting = self._proposed[t].topk(count).indices
        likely = (self._proposed[t] + self._expected[0]).topk(count).indices
        found: list[int] = torch.unique(torch.cat([fitting, likely])).tolist()
        return found


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _BeamReader(threat, options)


ATTACK: Final = AttackKind(
    AttackCard(
        name="map-beam",
        source="BeamClean (arXiv 2505.13758) carried from embeddings to any depth",
        threat_model="As `search`, and owns a language model; knows the defence's law and parameters.",
        needs=frozenset({"embedding", "head", "prior"}),
        parameters={
            "beams": "hypotheses kept",
            "proposals": "candidates per position for the best beam, and again for all others together",
            "gamma": "weight γ of the prior",
        },
        deviations="Noise parameters are taken as known instead of estimated: a public defence states them.",
        expected="74.3 % against 42.1 % of tokens by nearest neighbour under Gaussian noise on embeddings (published).",
    ),
    _Options,
    _prepare,
)
