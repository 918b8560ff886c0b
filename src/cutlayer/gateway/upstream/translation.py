"""Between the model's token ids and the engine's.

Whatever of a prompt leaves this machine is made by `Translation.ask`, and is a list of permuted ids; whatever an engine says
comes in through `Translation.token`, which believes nothing.

Notation: V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.client.logprobs import Logprobs
from cutlayer.errors import InputError, UpstreamError
from cutlayer.gateway.upstream.dialect import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.generation import Request
    from cutlayer.client.sampling import Sampling
    from cutlayer.gateway.upstream.dialect import Token
    from cutlayer.obfuscation.keys import ClientKey

_ROUNDING: Final = 1e-3
"""By which a log-probability may exceed 0."""


class Translation:
    """One key's view.

    Args:
        key: of the obfuscated model.
        model: as the engine calls it.
    """

    def __init__(self, key: ClientKey, model: str) -> None:
        self.vocabulary = len(key.tau)
        self._key = key
        self._model = model

    def ask(self, request: Request, sampling: Sampling, salt: str) -> Ask:
        """A request in the engine's ids. Stop strings stay here.

        Raises:
            InputError: a token id is outside the vocabulary.
        """
        biased = list(sampling.logit_bias)
        bias = dict(zip(self._key.to_server(biased), sampling.logit_bias.values(), strict=True))
        return Ask(
            model=self._model,
            prompt=self._key.to_server(request.prompt),
            max_tokens=request.max_tokens,
            sampling=msgspec.structs.replace(sampling, logit_bias=bias),
            stop_ids=sorted(self._key.to_server(sorted(request.stop_ids))),
            top=request.logprobs,
            salt=salt,
        )

    def token(self, token: Token, top: int | None) -> tuple[int, Logprobs | None]:
        """A token of the engine's, with as many of the likeliest as were asked for.

        Raises:
            UpstreamError: an id is outside the vocabulary, or a log-probability is missing or impossible.
        """
        plain = self._plain([token.id])[0]
        if top is None:
            return plain, None
        if token.logprob is None:
            raise UpstreamError("the engine left out the log-probabilities it was asked for")
        likely = sorted(token.top, key=lambda entry: -entry[1])[:top]
        for value in (token.logprob, *(value for _, value in likely)):
            if not math.isfinite(value) or value > _ROUNDING:
                raise UpstreamError("the engine reports a log-probability that is none")
        others = self._plain([other for other, _ in likely])
        return plain, Logprobs(plain, token.logprob, list(zip(others, (value for _, value in likely), strict=True)))

    def prompt(self, tokens: Sequence[Token | None], request: Request) -> list[Logprobs | None]:
        """Log-probabilities of a prompt.

        Raises:
            UpstreamError: they are of another prompt, or as with `token`.
        """
        if len(tokens) != len(request.prompt) or any(token is None for token in tokens[1:]):
            raise UpstreamError("the engine scored another prompt than the one it was sent")
        entries: list[Logprobs | None] = []
        for sent, token in zip(request.prompt, tokens, strict=True):
            plain, scored = (sent, None) if token is None else self.token(token, request.logprobs or 0)
            if plain != sent:
                raise UpstreamError("the engine scored another prompt than the one it was sent")
            entries.append(scored)
        return entries

    def _plain(self, ids: list[int]) -> list[int]:
        try:
            return self._key.from_server(ids)
        except InputError:
            raise UpstreamError(
                f"the engine answered with a token id outside the key's vocabulary of {self.vocabulary}; it serves another model"
            ) from None
