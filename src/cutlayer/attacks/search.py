"""Candidate search: which token, following what was read so far, gives the hidden state that left?

Left to right, candidates for a position are run through the attacker's copy of the layers and compared with what left, by
the defence's own likelihood. Where acceptance is exact, several positions are verified in one forward first, so only those
that the linear proposals got wrong cost a search.

Notation: N sessions, T positions, C candidates, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.proposals import Proposals
from cutlayer.attacks.tree import TreeForward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_ROUNDS: Final = (8, 56, 192, 768, 7168)
"""New candidates per round of an exact search; then all the rest."""
_AHEAD: Final = 8
"""Positions verified at once: one wrong proposal makes the rest of a chain worthless."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    width: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 64
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _SearchReader:
    def __init__(self, threat: Threat, options: _Options) -> None:
        self._threat = threat
        self._options = options
        self._proposals = Proposals(threat)

    def read(self, observation: Observation) -> Guess:
        return _Search(self._threat, self._options, self._proposals, observation.released).run()


class _Search:
    """The search of one prompt."""

    def __init__(self, threat: Threat, options: _Options, proposals: Proposals, released: torch.Tensor) -> None:
        self._channel = threat.channel
        self._prior = threat.prior
        self._options = options
        self._released = released
        self._tree = TreeForward(given(threat.head))
        self._proposed = proposals.log_probs(released)  # [T, V]
        self._language = threat.prior.session() if threat.prior is not None else None
        self._told = 0  # tokens the language model has seen
        self._next = torch.empty(0)
        self._evaluated = 0
        self._tokens: list[int] = []
        self._confidence: list[float] = []
        self._tried: set[int] = set()  # refused at the next position

    def run(self) -> Guess:
        length = self._released.shape[1]
        while len(self._tokens) < length:
            if not (self._channel.exact and self._verify()):
                self._search()
        effort = {"candidates": float(self._evaluated)}
        return Guess(torch.tensor(self._tokens), torch.tensor(self._confidence), effort)

    def _verify(self) -> bool:
        """Run the best proposals of the next few positions as one chain, and others for the first of them beside it.

        Takes the chain's correct beginning, or else the accepted of the others; says whether there was either.
        """
        done = len(self._tokens)
        chain = self._proposed[done : done + _AHEAD].argmax(-1).tolist()
        others = [token for token in self._ranked(self._proposed[done], _ROUNDS[0]) if token != chain[0]]
        parents = [*range(done - 1, done - 1 + len(chain)), *[done - 1] * len(others)]
        states = self._tree.extend([*chain, *others], parents)  # [C, D]
        right = 0
        while right < len(chain) and self._accepts(done + right, states[right]):
            self._take(chain[right], 1.0)
            right += 1
        if right:
            self._evaluated += right
            self._tree.keep(range(done + right))
            return True
        self._evaluated += 1 + len(others)
        self._tried.update([chain[0], *others])
        for i, token in enumerate(others, start=len(chain)):
            if self._accepts(done, states[i]):
                self._take(token, 1.0)
                self._tree.keep([*range(done), done + i])
                return True
        self._tree.keep(range(done))
        return False

    def _accepts(self, position: int, state: torch.Tensor) -> bool:
        return bool(self._channel.accepts(self._released[:, position], state[None]))

    def _search(self) -> None:
        """Find the token of the next position among growing sets of candidates."""
        at = len(self._tokens)
        released = self._released[:, at]  # [N, D]
        tried: list[int] = []
        scores: list[torch.Tensor] = []
        for candidates in self._rounds(at):
            score, accepted = self._evaluate(candidates, at - 1, released)
            tried += candidates
            scores.append(score)
            if bool(accepted.any()) and self._channel.exact:
                break
        likelihood = torch.cat(scores)  # [C]
        best = int(likelihood.argmax())
        self._tree.extend([tried[best]], [at - 1])
        self._take(tried[best], float(torch.softmax(likelihood, dim=0)[best]))

    def _evaluate(
        self, candidates: list[int], parent: int, released: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihood and acceptance of each candidate, [C]."""
        states = self._tree.peek(candidates, parent)  # [C, D]
        self._evaluated += len(candidates)
        return self._channel.log_likelihood(released, states), self._channel.accepts(released, states)

    def _rounds(self, at: int) -> Iterator[list[int]]:
        """Sets of candidates, the most promising first."""
        if not self._channel.exact:
            yield self._ranked(self._proposed[at], self._options.width)
            return
        promise = self._proposed[at] if self._prior is None else self._proposed[at] + self._expected()
        left = (self._options.limit or len(promise)) - len(self._tried)
        # What verification has refused comes last: it is right only if nothing else is.
        ranked = [token for token in self._ranked(promise, len(promise)) if token not in self._tried]
        ranked = [*ranked[:left], *self._tried]
        start = 0
        for size in (*_ROUNDS[1:], len(ranked)):
            if ranked[start : start + size]:
                yield ranked[start : start + size]
            start += size

    def _ranked(self, promise: torch.Tensor, count: int) -> list[int]:
        """The `count` most promising tokens of [V], best first."""
        ranked: list[int] = promise.topk(min(count, len(promise))).indices.tolist()
        return ranked

    def _expected(self) -> torch.Tensor:
        """The language model's log p of the next token, [V]."""
        prior, language = given(self._prior), given(self._language)
        if not self._tokens:
            return prior.first()
        fresh = self._tokens[self._told :]
        self._next = language.extend(fresh, range(self._told - 1, len(self._tokens) - 1))[-1] if fresh else self._next
        self._told = len(self._tokens)
        return self._next

    def _take(self, token: int, confidence: float) -> None:
        self._tokens.append(token)
        self._confidence.append(confidence)
        self._tried.clear()


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _SearchReader(threat, options)


ATTACK: Final = AttackKind(
    AttackCard(
        name="search",
        source="SipIt (arXiv 2510.15511) and vocabulary matching (arXiv 2505.18332)",
        threat_model="Holds the client's first layers (public weights) and the token table, sees every position's state.",
        needs=frozenset({"embedding", "head"}),
        parameters={
            "width": "candidates compared at each position when the defence is random",
            "limit": "most candidates tried at a position, default the whole vocabulary",
        },
        deviations=(
            "Acceptance by the defence's likelihood instead of a fixed radius, and the likeliest candidate when none is "
            "accepted; candidates ranked by a linear map, then a language model, instead of gradient steps or at random; "
            "several positions are verified in one forward before one is searched. No backtracking."
        ),
        expected="100 % of prompts undefended, about 0.2 % of the vocabulary explored (published, 7–8B models in FP4).",
    ),
    _Options,
    _prepare,
)
