"""Embeddings whose hidden states match what was observed: the forward that can be differentiated, and how a match is measured.

    forward = EmbeddingForward(head)
    targets = Targets.of(observations, channel, device)
    loss = cosine_distance(forward(e), targets.padded([0, 1])).sum()  # over both prompts

Prompts of different length are padded on the right. Under causal attention nothing after a position reaches it, so padding
changes no real state, and sums over prompts keep their gradients apart.

Footgun: a mean over the batch in place of a sum would make the step of plain gradient descent depend on the batch.

Notation: B prompts, T positions, D hidden size, N sessions, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from cutlayer.attacks.linear_map import SINK_RATIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.attacks.attack import Observation
    from cutlayer.attacks.table import Nearest, TokenTable
    from cutlayer.defences.channel import Channel
    from cutlayer.models.parts import Head

_SINK_WEIGHT: Final = 0.1
"""Of an attention sink: its state hardly depends on its token."""
_SEQUENCES, _LENGTH = 64, 32


class EmbeddingForward:
    """Hidden states as a differentiable function of embeddings.

    Args:
        head: the layers to run; their weights need no gradient.
    """

    def __init__(self, head: Head) -> None:
        self._model = head.shell.base_model
        embed = head.shell.get_input_embeddings()
        everything = torch.arange(len(embed.weight), device=embed.weight.device)
        self.table: torch.Tensor = embed(everything).detach().clone()
        """[V, D]: rows as they enter the first layer; some families scale the stored ones."""

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, T, D] → hidden states [B, T, D] float32; the identity if the head has no layers."""
        output = self._model(inputs_embeds=embeddings.to(self.table.dtype), use_cache=False)
        states: torch.Tensor = output.last_hidden_state.float()
        return states

    def of_tokens(self, tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Hidden states [T, D] of each sequence of token ids [T]."""
        with torch.inference_mode():
            states = self(self.table[pad_sequence(list(tokens), batch_first=True)])  # [B, T, D]
        return [rows[: len(ids)] for rows, ids in zip(states, tokens, strict=True)]


class Lookup(Protocol):
    """Which tokens embeddings stand for."""

    def __call__(self, embeddings: torch.Tensor, count: int = 1) -> Nearest:
        """The `count` likeliest tokens of embeddings [N, D]."""
        ...


class RowLookup:
    """The most similar table rows about their mean.

    Args:
        table: of the head's embeddings.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table

    def __call__(self, embeddings: torch.Tensor, count: int = 1) -> Nearest:
        """See `Lookup`."""
        return self._table.nearest(embeddings - self._table.mean, count)


class Padded(NamedTuple):
    """Targets of a batch, padded on the right."""

    rows: torch.Tensor
    """[B, T, D]: estimated hidden states, 0 where no value was carried."""
    carried: torch.Tensor
    """[B, T, D] of bool: coordinates that carry a value."""
    ceiling: torch.Tensor
    """[B, T]: what the law says other coordinates do not exceed in magnitude; infinite where it says nothing."""
    weight: torch.Tensor
    """[B, T]: 0 at padding."""


class Targets:
    """What is to be matched, per prompt.

    Args:
        prompts: a batch of one for each prompt.
    """

    def __init__(self, prompts: Sequence[Padded]) -> None:
        self._prompts = prompts

    @classmethod
    def of(cls, observations: Sequence[Observation], channel: Channel, device: torch.device | str) -> Targets:
        """The channel's estimates of what was sent."""
        return cls([_target(observation.released.to(device), channel) for observation in observations])

    def __len__(self) -> int:
        return len(self._prompts)

    def rows(self, prompt: int) -> torch.Tensor:
        """Estimated hidden states of one prompt, [T, D]."""
        return self._prompts[prompt].rows[0]

    def padded(self, prompts: Sequence[int]) -> Padded:
        """The batch of some prompts."""
        columns = zip(*(self._prompts[i] for i in prompts), strict=True)
        return Padded(*(pad_sequence([value[0] for value in column], batch_first=True) for column in columns))


class Standard(NamedTuple):
    """Hidden states per coordinate about their mean, in standard deviations: else the few coordinates in which all states are
    large and alike would make all states look alike."""

    mean: torch.Tensor
    """[D]"""
    deviation: torch.Tensor
    """[D]"""

    @classmethod
    def of(cls, rows: torch.Tensor) -> Standard:
        """Measured on hidden states [N, D], without attention sinks and coordinates that were not carried, which are 0."""
        lengths = rows.norm(dim=-1)
        ordinary = rows[lengths <= SINK_RATIO * lengths.median()]
        carried = ordinary != 0
        count = carried.sum(0).clamp_min(1)  # [D]
        mean = ordinary.sum(0) / count
        deviation = (((ordinary - mean) * carried).square().sum(0) / count).sqrt()
        return cls(mean, deviation.clamp_min(1e-3 * float(deviation.square().mean().sqrt())))

    def apply(self, states: torch.Tensor, targets: Padded) -> tuple[torch.Tensor, Padded]:
        """States [B, T, D] and what they are to match, both in standard units."""
        rows = (targets.rows - self.mean) / self.deviation * targets.carried
        above = (states.abs() - targets.ceiling.unsqueeze(-1)).clamp_min(0) / self.deviation  # [B, T, D]
        return torch.where(targets.carried, (states - self.mean) / self.deviation, above), targets._replace(rows=rows)


def typical_states(forward: EmbeddingForward, seed: int) -> torch.Tensor:
    """Hidden states [N, D] of random tokens, for an attacker who owns no text."""
    coins = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(forward.table), (_SEQUENCES, _LENGTH), generator=coins).to(forward.table.device)
    return torch.cat(forward.of_tokens(list(tokens)))


def cosine_distance(states: torch.Tensor, targets: Padded) -> torch.Tensor:
    """1 − cos over carried coordinates of states [B, T, D], [B, T]."""
    return 1 - cosine_similarity(states * targets.carried, targets.rows, dim=-1)


def squared_error(states: torch.Tensor, targets: Padded) -> torch.Tensor:
    """Squared distance over carried coordinates of states [B, T, D], [B, T]."""
    return ((states - targets.rows) * targets.carried).square().sum(-1)


def _target(released: torch.Tensor, channel: Channel) -> Padded:
    # clones: what was computed in inference mode may not enter a graph
    carried = channel.transmitted(released).clone()  # [T, D]
    rows = channel.estimate(released).clone() * carried  # [T, D]
    lengths = rows.norm(dim=-1)
    weight = torch.where(lengths > SINK_RATIO * lengths.median(), _SINK_WEIGHT, 1.0)  # [T]
    ceilings = [_ceiling(released[:, t], rows[t], carried[t], channel) for t in range(len(rows))]
    ceiling = torch.tensor(ceilings, device=rows.device)  # [T]
    return Padded(rows[None], carried[None], ceiling[None], weight[None])


def _ceiling(released: torch.Tensor, row: torch.Tensor, carried: torch.Tensor, channel: Channel) -> float:
    """How large a coordinate of `row` [D] may be that was not carried.

    A top-k filter drops only what is smaller than all it keeps, a random mask drops anything. The law tells which it is: ask
    it how likely a state is whose dropped coordinates are large.
    """
    if carried.all() or not carried.any():
        return torch.inf
    large = torch.where(carried, row, 2 * row.abs().max())
    small, big = channel.log_likelihood(released, torch.stack([row, large])).tolist()
    return float(row[carried].abs().min()) if big < small - 1 else torch.inf
