"""Which tokens a search tries first: those whose embedding a linear map reads off the hidden state.

Notation: T positions, D hidden size, V vocabulary, S sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch

from cutlayer.attacks.attack import Auxiliary, given
from cutlayer.attacks.linear_map import LinearMap
from cutlayer.attacks.table import TokenTable

if TYPE_CHECKING:
    from cutlayer.attacks.attack import Threat
    from cutlayer.models.parts import Head

_OWN_SEQUENCES: Final = 400
_OWN_LENGTH: Final = 48
_FIRSTS: Final = 6144
_FORWARD_TOKENS: Final = 2048
_TEMPERATURE: Final = 0.04
"""Of the softmax that turns cosines into log-probabilities comparable with a language model's."""


class Proposals:
    """Tokens ranked for each position of a prompt.

    Fitted on random tokens, which a server that holds the layers can run through them and which cover the whole
    vocabulary, together with the attacker's text where there is some. The first position has a map of its own: in most
    models it is an attention sink, whose state is hundreds of times longer and depends on its token alone.

    Args:
        threat: with embedding and head.
    """

    def __init__(self, threat: Threat) -> None:
        self._channel = threat.channel
        self._table = TokenTable(given(threat.embedding))
        own = _random_pairs(threat, _OWN_SEQUENCES, _OWN_LENGTH)
        self._linear = LinearMap(_joined(own, threat.auxiliary) if threat.auxiliary else own, self._table)
        self._first = LinearMap(_random_pairs(threat, _FIRSTS, 1), self._table)

    def log_probs(self, released: torch.Tensor) -> torch.Tensor:
        """A rough log p(token | what left), [T, V], from what left [N, T, D]."""
        estimate = self._channel.estimate(released)  # [T, D]
        vectors = torch.cat([self._first(estimate[:1]), self._linear(estimate[1:])])  # [T, D]
        return torch.log_softmax(self._table.similarity(vectors) / _TEMPERATURE, dim=-1)


def _joined(*parts: Auxiliary) -> Auxiliary:
    """One sequence of all pairs beyond the first position."""
    ids = torch.cat([part.ids[:, 1:].flatten() for part in parts])[None]
    return Auxiliary(ids, torch.cat([part.released[:, 1:].flatten(0, 1) for part in parts])[None])


def _random_pairs(threat: Threat, sequences: int, length: int) -> Auxiliary:
    """Random tokens through the layers and, if there is one, the defence."""
    ids, hidden = _random_states(given(threat.head), sequences, length)
    return Auxiliary(ids, threat.simulate(hidden, ids) if threat.simulate else hidden)


_STATES: Final[WeakKeyDictionary[Head, dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]]] = WeakKeyDictionary()
"""Many defences are attacked at one cut, and random tokens pass its layers but once."""


def _random_states(head: Head, sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [S, T], hidden states [S, T, D])."""
    held = _STATES.setdefault(head, {})
    if (sequences, length) not in held:
        table = head.embedding()
        ids = torch.randint(len(table), (sequences, length), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            batches = torch.split(ids, max(1, _FORWARD_TOKENS // length))
            hidden = torch.cat([head(batch.to(table.device), head.new_cache()).float().cpu() for batch in batches])
        held[sequences, length] = (ids, hidden)
    return held[sequences, length]
