"""Cunningham's position-wise classifier of token ids, replicated, and the same network regressing embeddings.

A classifier over the types of its training text can never name another: with little text that ceiling, not the depth of the
cut, decides its score. `CunninghamReader.types` holds the types, so that the ceiling can be printed beside every figure.

Notation: N pairs, D hidden size, V vocabulary, C types seen in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from cutlayer.attacks.attack import AttackCard, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.table import TokenTable, top_confidence
from cutlayer.attacks.training import Recipe, Split, fit, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.attack import Capability
    from cutlayer.defences.channel import Channel

_SHOWN: Final = 64


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    target: Literal["token", "embedding"] = "token"
    pairs: Annotated[int, msgspec.Meta(ge=1)] | None = None
    epochs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50
    width: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 2048
    batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256


class CunninghamReader:
    """The trained network.

    Args:
        network: hidden states [T, D] → scores of `types` [T, C], or centred embeddings [T, D].
        types: [C] token ids seen in training, ascending.
        table: to look embeddings up in; None if the network scores types.
        channel: how sessions are combined.
        device: of the network.
    """

    def __init__(
        self, network: nn.Module, types: torch.Tensor, table: TokenTable | None, channel: Channel, device: str
    ) -> None:
        self.types = types
        self._network = network
        self._table = table
        self._channel = channel
        self._device = device

    def read(self, observation: Observation) -> Guess:
        """See `Reader.read`."""
        output = self._output(observation)
        if self._table is not None:
            best = self._table.nearest(output, min(_SHOWN, len(self._table.centred)))
            return Guess(best.tokens[:, 0].cpu(), top_confidence(best.cosine).cpu())
        share = torch.softmax(output, dim=-1).max(-1)
        return Guess(self.types[share.indices.cpu()], share.values.cpu())

    def ranked(self, observation: Observation, count: int) -> torch.Tensor:
        """The best tokens of every position, best first, [T, count]; fewer columns if fewer types are known."""
        output = self._output(observation)
        if self._table is not None:
            return self._table.nearest(output, count).tokens.cpu()
        return self.types[output.topk(min(count, len(self.types)), dim=-1).indices.cpu()]

    def _output(self, observation: Observation) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = self._network(self._channel.estimate(observation.released).to(self._device))
        return output


def _network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.GELU(),
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.GELU(),
        nn.LayerNorm(width),
        nn.Linear(width, outputs),
    )


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    auxiliary, device = given(threat.auxiliary), threat.device
    with seeded(threat.seed, device):
        order = torch.randperm(len(auxiliary.ids))
        ids = auxiliary.ids[order].flatten()[: options.pairs]  # [N]
        rows = auxiliary.released[order].flatten(0, 1)[: options.pairs]  # [N, D]
        types, classes = torch.unique(ids, return_inverse=True)  # [C], [N]
        table = TokenTable(given(threat.embedding).to(device)) if options.target == "embedding" else None
        outputs = len(types) if table is None else rows.shape[-1]
        network = _network(rows.shape[-1], options.width, outputs).to(device)

        def loss(pairs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = network(rows[pairs].to(device))
            if table is None:
                return cross_entropy(output, classes[pairs].to(device))
            return mse_loss(output, table.centred[ids[pairs].to(device)]) / table.centred.square().mean()

        steps = options.epochs * -(-len(ids) // options.batch)
        recipe = Recipe(steps, options.batch, rate=1e-3, decay=0.01, warmup=0, clip=None)
        fit(network, loss, Split(torch.arange(len(ids)), torch.empty(0, dtype=torch.long)), recipe, progress)
    return CunninghamReader(network, types, table, threat.channel, device)


def _needs(options: _Options) -> frozenset[Capability]:
    return frozenset({"auxiliary"} if options.target == "token" else {"auxiliary", "embedding"})


ATTACK: Final = AttackKind(
    AttackCard(
        name="cunningham",
        source="Cunningham, arXiv 2602.16760, inversion experiment, and its code",
        threat_model="Owns text and can send it through the same cut and defence; knows no weights, no token table.",
        needs=frozenset({"auxiliary"}),
        parameters={
            "target": "token (the paper's classifier) or embedding (regression and nearest row, needs the token table)",
            "pairs": "most training pairs, taken from whole sequences in random order; default all",
            "epochs": "passes over them; the paper's is 50",
            "width": "of both hidden layers; the paper's is 2048",
            "batch": "pairs per step; the paper's is 256",
        },
        deviations=(
            "The output layer has the columns of types seen in training only: a column that is never the answer is only ever "
            "pushed down, so it would not win. Trained and tested on different texts, where the paper splits the tokens of the "
            "same texts. Embedding target: not in the paper."
        ),
        expected=(
            "Published, Mistral-7B, about 880 pairs: 58.8 / 44.3 / 44.8 / 34.8 % top-1 at 2 / 4 / 6 / 8 layers, ± 10 points. "
            "Type coverage of that text is about 0.6 with proxy tokenisers, a ceiling for the score (derived); at least 95 % at "
            "2 layers with 200,000 pairs (prediction)."
        ),
    ),
    _Options,
    _prepare,
    _needs,
)
