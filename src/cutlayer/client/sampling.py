"""Choosing the next token from logits, on the client, so that no distribution ever leaves it.

Penalties come first: repetition, then presence and frequency, then the bias, then the mask. The order of transformers'
processors is kept after them: temperature, top-k, top-p, min-p.

Notation: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen. Temperature 0 is greedy; the filters then change nothing, penalties and bias still do."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Keep the likeliest tokens that together have this probability."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    """Divide positive (multiply negative) logits of tokens seen so far, in prompt or answer."""
    presence_penalty: _Penalty = 0.0
    """Taken from the logits of tokens the answer already has."""
    frequency_penalty: _Penalty = 0.0
    """Taken from the logit of a token once for every time the answer has it."""
    logit_bias: dict[int, _Bias] = {}
    """Token id → added to its logit."""
    seed: int | None = None
    """Of the sampling generator; None draws one."""

    def checked(self) -> Sampling:
        """Return self.

        Raises:
            InputError: a value is out of range, not finite or of the wrong type.
        """
        try:
            return msgspec.convert(msgspec.to_builtins(self), Sampling)
        except msgspec.ValidationError as error:
            raise InputError(f"sampling: {error}") from None


class TokenMask(Protocol):
    """What an answer may go on with, as a grammar has it."""

    def allowed(self) -> torch.Tensor:
        """[V] of bool; at least one is true."""
        ...

    def take(self, token: int) -> None:
        """The answer went on with `token`."""
        ...


class Sampler:
    """Draws tokens under one `Sampling`.

    Args:
        sampling: the settings.
        mask: tokens it forbids are never drawn.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(self, sampling: Sampling, mask: TokenMask | None = None) -> None:
        self._sampling = sampling.checked()
        self._mask = mask
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(
        self,
        logits: torch.Tensor,
        seen: Sequence[int],
        answer: Sequence[int] = (),
        drawn: Iterable[tuple[int, torch.Tensor]] = (),
    ) -> int:
        """The next token id. Its law is that of `logits`, whatever was drafted.

        Args:
            logits: [V], float32.
            seen: ids of prompt and answer so far, for the repetition penalty.
            answer: ids of the answer so far, for presence and frequency penalties.
            drawn: drafted tokens and the laws [V] they were drawn from, each independently. Drafts that were not drawn need not
                be given: that one of them is right is found by looking.

        Raises:
            InputError: `logit_bias` names a token the vocabulary does not have.
        """
        scores = self._biased(self._counted(self._penalised(logits, seen), answer))
        if self._mask is not None:
            scores = scores.masked_fill(~self._mask.allowed(), -torch.inf)
        greedy = self._sampling.temperature == 0
        token = int(scores.argmax()) if greedy else self._draw(self.probabilities(scores), drawn)
        if self._mask is not None:
            self._mask.take(token)
        return token

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Distribution [V] after temperature and filters; `scores` are penalised logits, temperature above 0."""
        chosen = self._sampling
        # Less the largest: at a temperature near 0 the quotients would overflow, and softmax of two infinities is NaN.
        scores = (scores - scores.max()) / chosen.temperature  # [V]
        if 0 < chosen.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(chosen.top_k).values[-1], -torch.inf)
        if chosen.top_p < 1:
            ascending, order = scores.sort()
            cut = ascending.softmax(-1).cumsum(-1) <= 1 - chosen.top_p
            cut[-1] = False
            scores = scores.masked_fill(torch.zeros_like(cut).scatter(0, order, cut), -torch.inf)
        if chosen.min_p > 0:
            likelihood = scores.softmax(-1)
            scores = scores.masked_fill(likelihood < chosen.min_p * likelihood.max(), -torch.inf)
        return scores.softmax(-1)

    def _draw(self, target: torch.Tensor, drawn: Iterable[tuple[int, torch.Tensor]]) -> int:
        """Rejection sampling (Leviathan et al. 2023; with several drafts, SpecInfer's multi-step rule): a draft x of law q is
        accepted with probability min(1, p(x)/q(x)); if it is not, p becomes what of p exceeds q. `target` is p [V]."""
        for token, law in drawn:
            excess = (target - law).clamp_(min=0)  # [V]
            # Where nothing exceeds the law the two are equal, and but for rounding the draft is certain to be accepted.
            if (
                float(torch.rand((), generator=self._generator)) * float(law[token]) < float(target[token])
                or not excess.any()
            ):
                return token
            target = excess / excess.sum()
        return int(torch.multinomial(target, 1, generator=self._generator))

    def _penalised(self, logits: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
        penalty = self._sampling.repetition_penalty
        if penalty == 1 or not seen:
            return logits
        ids = torch.tensor(sorted(set(seen)))
        values = logits[ids]
        return logits.scatter(0, ids, torch.where(values < 0, values * penalty, values / penalty))

    def _counted(self, logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if not answer or (presence == 0 and frequency == 0):
            return logits
        counts = Counter(answer)
        ids = torch.tensor(list(counts))
        times = torch.tensor(list(counts.values()), dtype=logits.dtype)
        return logits.scatter_add(0, ids, -(presence + frequency * times))

    def _biased(self, logits: torch.Tensor) -> torch.Tensor:
        bias = self._sampling.logit_bias
        if not bias:
            return logits
        if (wrong := next((token for token in bias if not 0 <= token < len(logits)), None)) is not None:
            raise InputError(f"logit_bias: token id {wrong} is outside the vocabulary of {len(logits)}")
        ids = torch.tensor(list(bias))
        return logits.scatter_add(0, ids, torch.tensor(list(bias.values()), dtype=logits.dtype))
