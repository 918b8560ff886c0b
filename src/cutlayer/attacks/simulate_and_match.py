"""Simulate-and-match: run the defence itself on every candidate that might be, and compare with what left.

A perturbation that follows from tokens and key says nothing by itself, but an attacker can compute it again: whatever the key
does not change is the same under keys of the attacker's own. Left to right, candidates are sifted by the defence's law, those
that pass are sent through the defence, and where no candidate passes the last choice is taken back.

Notation: N sessions, T positions, C candidates, D hidden size, V vocabulary.
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
    from collections.abc import Callable, Iterator, Sequence


_SAME: Final = 0.5
"""Distance between what left and what the attacker's own session sends, over the length of the perturbation, below which the
one is the other's repetition. Perturbations in unrelated directions are 1.4 apart."""
_ROUNDS: Final = (64, 448, 3584)
"""New candidates per round; then all the rest."""
_TRIAL: Final = (3, 4)
"""Sequences and positions of random tokens on which the attacker looks at the defence beforehand."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    keys: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    scans: Annotated[int, msgspec.Meta(ge=1)] = 20
    simulations: Annotated[int, msgspec.Meta(ge=0)] = 10_000


class _SimulatingReader:
    def __init__(self, threat: Threat, options: _Options, progress: Callable[[float], None]) -> None:
        trial = None if threat.channel.exact or threat.release is None else _Trial(threat, options.keys, progress)
        self._threat = threat
        self._options = options
        # A key says nothing where none of many repeats another's perturbation, and costs as much as all others
        self._keys = options.keys if trial is not None and trial.repeats else 0
        self._proposals = Proposals(threat if trial is None else threat._replace(simulate=trial.noise))
        self._first = given(threat.prior).first()  # [V]

    def read(self, observation: Observation) -> Guess:
        proposed = self._proposals.log_probs(observation.released)  # [T, V]
        return _Descent(self._threat, self._options, self._keys, proposed, self._first, observation.released).run()


class _Trial:
    """What random tokens, sent under keys of the attacker's own, show of the defence.

    Args:
        threat: with embedding, head and release.
        keys: how many to try.
        progress: told the share done.
    """

    def __init__(self, threat: Threat, keys: int, progress: Callable[[float], None]) -> None:
        self._generator = torch.Generator().manual_seed(threat.seed)
        head, release = given(threat.head), given(threat.release)
        table = head.embedding()
        shares: list[torch.Tensor] = []
        found = 0
        for ids in torch.randint(len(table), _TRIAL, generator=self._generator):
            with torch.inference_mode():
                hidden = head(ids[None].to(table.device), head.new_cache())[0].float().cpu()  # [T, D]
            sent = release(hidden, ids.tolist(), 0)  # [T, D]
            shares.append((sent - hidden).norm(dim=-1) / hidden.norm(dim=-1))
            _, tried = _nearest(threat, hidden[-1], ids.tolist(), sent[-1:], range(1, keys + 1))
            found += tried <= keys
            progress(len(shares) / _TRIAL[0])
        self.repeats = found > 0
        """Whether the perturbation under one key is that under another now and then."""
        self._share = float(torch.cat(shares).median())

    def noise(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Isotropic noise as long as the perturbation, as `Threat.simulate`: it ranks candidates, which needs no more."""
        drawn = torch.randn(hidden.shape, generator=self._generator) / hidden.shape[-1] ** 0.5
        noisy: torch.Tensor = hidden + self._share * hidden.norm(dim=-1, keepdim=True) * drawn
        return noisy


def _nearest(
    threat: Threat, state: torch.Tensor, ids: Sequence[int], released: torch.Tensor, keys: range
) -> tuple[float, int]:
    """Send a hidden state [D] of the last of `ids` under one key after another, until one sends what left [N, D].

    Returns:
        How near any came, as `_SAME`, and how many were tried; one more than there are if none sent it.
    """
    length = (released - state).norm(dim=-1).clamp_min(1e-12)  # [N]
    nearest = torch.full_like(length, torch.inf)
    for tried, key in enumerate(keys, start=1):
        sent = given(threat.release)(state[None], ids, key)  # [1, D]
        nearest = torch.minimum(nearest, (released - sent).norm(dim=-1) / length)
        if bool((nearest < _SAME).all()):
            return float(nearest.mean()), tried
    return float(nearest.mean()), len(keys) + 1


class _Fit(NamedTuple):
    """A candidate that the law allows; the greater is tried first."""

    sure: bool
    score: float
    token: int


class _Place:
    """One position while its token is sought: what was not yet tried, and what the law allowed."""

    def __init__(self, promise: torch.Tensor) -> None:
        self.promise = promise  # [V], log p up to a constant
        self._ranked: list[int] = promise.argsort(descending=True).tolist()
        self.open: list[_Fit] = []
        self.confidence = 0.0
        """In what was taken last."""
        self.rounds = self._rounds()

    def _rounds(self) -> Iterator[list[int]]:
        start = 0
        for size in (*_ROUNDS, len(self._ranked)):
            if self._ranked[start : start + size]:
                yield self._ranked[start : start + size]
            start += size

    def take(self) -> _Fit | None:
        """The best of the open ones, which is open no more."""
        best = max(self.open, default=None)
        if best is not None:
            self.confidence = 1.0 if best.sure else 1 / len(self.open)
            self.open.remove(best)
        return best


class _Descent:
    """The reading of one prompt: depth first, and back from where no candidate passes."""

    def __init__(
        self,
        threat: Threat,
        options: _Options,
        keys: int,
        proposed: torch.Tensor,
        first: torch.Tensor,
        released: torch.Tensor,
    ) -> None:
        self._threat = threat
        self._keys = range(keys)
        self._most_simulated = options.simulations
        self._most_evaluated = options.scans * proposed.shape[1]
        self._proposed = proposed  # [T, V]
        self._released = released  # [N, T, D]
        self._states = TreeForward(given(threat.head))
        self._language = given(threat.prior).session()
        self._expected = [first]  # by position, [V] each
        self._tokens: list[int] = []
        self._places: list[_Place] = []
        self._farthest: list[tuple[int, float]] = []
        self._evaluated = 0
        self._simulated = 0

    def run(self) -> Guess:
        length = self._released.shape[1]
        while len(self._tokens) < length and self._evaluated < self._most_evaluated:
            at = len(self._tokens)
            if at == len(self._places):
                self._places.append(_Place(self._proposed[at] + self._expected[at]))
            found = self._next(self._places[at])
            if found is not None:
                self._descend(found.token)
            elif not self._retreat():
                break
        read = [*self._farthest, *((int(row.argmax()), 0.0) for row in self._proposed[len(self._farthest) :])]
        effort = {"candidates": float(self._evaluated), "simulations": float(self._simulated)}
        return Guess(torch.tensor([token for token, _ in read]), torch.tensor([sure for _, sure in read]), effort)

    def _next(self, place: _Place) -> _Fit | None:
        """The next token to try at the position reached; None if there is none.

        Candidates are looked at until one is sure, or where nothing can make sure, until the law allows one.
        """
        at = len(self._tokens)
        released = self._released[:, at]  # [N, D]
        while not any(fit.sure or not self._simulating for fit in place.open):
            candidates = next(place.rounds, None)
            if candidates is None:
                break
            states = self._states.peek(candidates, at - 1)  # [C, D]
            self._evaluated += len(candidates)
            likelihood = self._threat.channel.log_likelihood(released, states)  # [C]
            for i in self._threat.channel.accepts(released, states).nonzero()[:, 0].tolist():
                promise = float(likelihood[i] + place.promise[candidates[i]])
                place.open.append(self._fit(candidates[i], states[i], released, promise))
        return place.take()

    @property
    def _simulating(self) -> bool:
        return len(self._keys) > 0 and self._simulated < self._most_simulated

    def _fit(self, token: int, state: torch.Tensor, released: torch.Tensor, promise: float) -> _Fit:
        """What simulation says of an accepted candidate with hidden state [D]."""
        if not self._simulating:
            return _Fit(self._threat.channel.exact, promise, token)
        distance, tried = _nearest(self._threat, state, [*self._tokens, token], released, self._keys)
        self._simulated += min(tried, len(self._keys))
        return _Fit(True, -distance, token) if tried <= len(self._keys) else _Fit(False, promise, token)

    def _descend(self, token: int) -> None:
        at = len(self._tokens)
        self._states.extend([token], [at - 1])
        self._expected.append(self._language.extend([token], [at - 1])[0])
        self._tokens.append(token)
        if len(self._tokens) > len(self._farthest):
            self._farthest = [
                (found, place.confidence) for found, place in zip(self._tokens, self._places, strict=True)
            ]

    def _retreat(self) -> bool:
        """Take the last choice back; False if there is none.

        A choice that the simulation recognised can be wrong too: at an attention sink all tokens are perturbed alike.
        """
        if not self._tokens:
            return False
        at = len(self._tokens) - 1
        del self._places[at + 1 :], self._tokens[at:], self._expected[at + 1 :]
        self._states.keep(range(at))
        self._language.keep(range(at))
        return True


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    return _SimulatingReader(threat, options, progress)


ATTACK: Final = AttackKind(
    AttackCard(
        name="simulate-and-match",
        source="Own; the attack that a perturbation fixed by tokens and public weights has to survive",
        threat_model=(
            "Holds the client's first layers (public weights) and a language model, knows the defence with all its parameters, "
            "and runs it under keys of its own; not the session's key."
        ),
        needs=frozenset({"embedding", "head", "prior"}),
        parameters={
            "keys": "keys of the attacker's own under which a candidate is sent before it is doubted",
            "scans": "candidates evaluated for one prompt before the rest of it is guessed, in vocabularies",
            "simulations": "the same of simulations, before the law alone decides",
        },
        deviations=(
            "Candidates are sifted by the defence's law before they are sent through it, in the order of a linear map fitted "
            "under noise of the perturbation's length and of a language model. Where keys never repeat one another's "
            "perturbation on random tokens, nothing is simulated, and the law alone sifts."
        ),
        expected="Everything, where the law or the direction depends on little but the tokens (predicted).",
    ),
    _Options,
    _prepare,
)
