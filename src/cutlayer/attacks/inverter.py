"""What the learned inverters share: a ridge map, a network that corrects it, and a softmax over the token table.

The correction starts at zero, so every inverter starts as the ridge attack and training can only add to it. Coordinates are
standardised and cut off at a few deviations: attention-sink positions, hundreds of times longer than others, would
otherwise drown every layer they enter, and their tokens are still legible in their ordinary coordinates.

Notation: S sequences, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from cutlayer.attacks.attack import Auxiliary, Guess, Observation, Threat, given
from cutlayer.attacks.linear_map import SINK_RATIO, LinearMap
from cutlayer.attacks.table import TokenTable
from cutlayer.attacks.token_softmax import TokenSoftmax

if TYPE_CHECKING:
    from cutlayer.defences.channel import Channel

_LIMIT: Final = 8.0
"""Deviations a coordinate is cut off at; below `SINK_RATIO`, so that the ridge map fits sinks too."""
_FITTED: Final = 131_072
"""Pairs the statistics and the ridge map are computed from."""


class Standard:
    """Standardises hidden states per coordinate.

    Args:
        rows: [N, D], that mean and deviation are taken of; those of unusual length are left out.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        lengths = rows.norm(dim=-1)
        ordinary = rows[lengths <= SINK_RATIO * lengths.median()]
        self._mean = ordinary.mean(0)
        self._deviation = ordinary.std(0).clamp_min(1e-6 * float(ordinary.std()))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] in deviations from the mean, [..., D]."""
        return ((rows.to(self._mean) - self._mean) / self._deviation).clamp(-_LIMIT, _LIMIT)


class Inverter(nn.Module):
    """Hidden states → queries, in units of a typical centred row of the table.

    Args:
        network: standardised hidden states [S, T, D] → corrections [S, T, D].
        threat: with auxiliary text and the token table.
    """

    def __init__(self, network: nn.Module, threat: Threat) -> None:
        super().__init__()
        auxiliary = given(threat.auxiliary)
        self.table = TokenTable(given(threat.embedding).to(threat.device))
        rows, ids = auxiliary.released.flatten(0, 1), auxiliary.ids.flatten()
        step = -(-len(rows) // _FITTED)
        rows, ids = rows[::step].to(threat.device), ids[::step].to(threat.device)
        self.standard = Standard(rows)
        self._linear = LinearMap(Auxiliary(ids[None], self.standard(rows)[None]), self.table)
        self.length = float(self.table.centred.norm(dim=-1).mean())
        self.network = network.to(threat.device)
        self.softmax = TokenSoftmax(self.table, auxiliary.ids).to(threat.device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Queries [S, T, D] of hidden states [S, T, D]."""
        return self.correct(self.standard(rows), self.network)

    def correct(self, standard: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """Queries [S, T, D] of standardised hidden states, corrected by `network`."""
        correction: torch.Tensor = network(standard)
        return self._linear(standard) / self.length + correction


class InverterReader:
    """A trained inverter, ready.

    Args:
        inverter: in evaluation mode.
        channel: how sessions are combined.
    """

    def __init__(self, inverter: Inverter, channel: Channel) -> None:
        self._inverter = inverter
        self._channel = channel

    def log_probs(self, observation: Observation) -> torch.Tensor:
        """log p(token) at every position, [T, V]."""
        with torch.no_grad():
            queries = self._inverter(self._channel.estimate(observation.released)[None])[0]  # [T, D]
            log_probs: torch.Tensor = self._inverter.softmax(queries)
        return log_probs.cpu()

    def read(self, observation: Observation) -> Guess:
        """See `Reader.read`."""
        best = self.log_probs(observation).max(-1)
        return Guess(best.indices, best.values.exp())

    def ranked(self, observation: Observation, count: int) -> torch.Tensor:
        """The `count` likeliest tokens of every position, best first, [T, count]."""
        return self.log_probs(observation).topk(count, dim=-1).indices


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer with all its parameters at zero, so that a correction starts as none."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
