"""RevertLM: project hidden states back to embeddings, then let a language model write the text they stand for.

Notation: S sequences, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from cutlayer.attacks.attack import AttackCard, Auxiliary, Guess, Observation, Reader, Threat, given
from cutlayer.attacks.conditioned import ConditionedModel
from cutlayer.attacks.inverter import Inverter, InverterReader, silent
from cutlayer.attacks.kind import AttackKind
from cutlayer.attacks.training import Recipe, fit, hold_out, seeded
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.attack import Capability


_CLASSIFICATION: Final = 0.1
"""Weight of the cross-entropy in the loss of stage 1."""
_HEADS: Final = 8
_WRITER_BATCH: Final = 8
_RESERVED: Final = 0.25
"""Largest share of the text kept from stage 1, so that stage 2 learns from guesses as bad as those it will be given."""


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    stage: Annotated[int, msgspec.Meta(ge=1, le=2)] = 2
    steps: Annotated[int, msgspec.Meta(ge=8, le=1_000_000)] = 800
    batch: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 16
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-3
    sequences: Annotated[int, msgspec.Meta(ge=2)] = 400
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    rank: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    beams: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    mix: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0


class _Projector(nn.Module):
    """LayerNorm, two linear layers around a GELU with residual, then one bidirectional transformer block."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )
        self.block = nn.TransformerEncoderLayer(
            size, math.gcd(size, _HEADS), 2 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.output = nn.Sequential(nn.LayerNorm(size), silent(nn.Linear(size, size)))

    def forward(self, standard: torch.Tensor) -> torch.Tensor:
        """[S, T, D] → [S, T, D]"""
        hidden = standard + self.perceptron(standard) + _places(standard)
        correction: torch.Tensor = self.output(self.block(hidden))
        return correction


def _places(standard: torch.Tensor) -> torch.Tensor:
    """Sinusoids of the position, [T, D]."""
    length, size = standard.shape[1:]
    phase = torch.arange(size, device=standard.device)
    rate = torch.exp(-math.log(1e4) * (phase - phase % 2) / size)  # [D]
    angle = torch.arange(length, device=standard.device)[:, None] * rate  # [T, D]
    return torch.where(phase % 2 == 0, angle.sin(), angle.cos())


class _RevertReader:
    """Both stages."""

    def __init__(self, projector: InverterReader, writer: ConditionedModel, options: _Options) -> None:
        self._projector = projector
        self._writer = writer
        self._options = options

    def read(self, observation: Observation) -> Guess:
        log_probs = self._projector.log_probs(observation)  # [T, V]
        guessed = self._writer.expected(log_probs)  # [T, D]
        return Guess(*self._writer.decode(guessed, self._options.mix * log_probs, self._options.beams))


def _prepare(options: _Options, threat: Threat, progress: Callable[[float], None]) -> Reader:
    auxiliary = given(threat.auxiliary)
    with seeded(threat.seed, threat.device):
        if options.stage == 1:
            return InverterReader(_projector(threat, options, progress), threat.channel)
        reserved = min(options.sequences, round(_RESERVED * len(auxiliary.ids)))
        if reserved < 2:
            raise InputError(f"{len(auxiliary.ids)} auxiliary sequences: stage 2 of revertlm needs at least 8")
        order = torch.randperm(len(auxiliary.ids))
        first = Auxiliary(auxiliary.ids[order[reserved:]], auxiliary.released[order[reserved:]])
        second = Auxiliary(auxiliary.ids[order[:reserved]], auxiliary.released[order[:reserved]])
        inverter = _projector(threat._replace(auxiliary=first), options, lambda share: progress(0.5 * share))
        writer = ConditionedModel(given(threat.prior).model, options.rank, threat.device)
        with torch.no_grad():
            log_probs = (inverter.softmax(inverter(rows[None])[0]) for rows in second.released)  # S × [T, V]
            guessed = torch.stack([writer.expected(each) for each in log_probs])  # [S, T, D]
        steps = options.epochs * -(-reserved // _WRITER_BATCH)
        recipe = Recipe(steps, _WRITER_BATCH, options.rate, checks=4)
        writer.train(guessed, second.ids, recipe, lambda share: progress(0.5 + 0.5 * share))
    return _RevertReader(InverterReader(inverter, threat.channel), writer, options)


def _projector(threat: Threat, options: _Options, progress: Callable[[float], None]) -> Inverter:
    """Stage 1, trained."""
    auxiliary = given(threat.auxiliary)
    inverter = Inverter(_Projector(auxiliary.released.shape[-1]), threat)

    def loss(sequences: torch.Tensor) -> torch.Tensor:
        ids = auxiliary.ids[sequences].flatten().to(inverter.softmax.unit.device)
        queries: torch.Tensor = inverter(auxiliary.released[sequences]).flatten(0, 1)  # [N, D]
        targets = inverter.table.centred[ids] / inverter.length  # [N, D]
        relative = (queries - targets).square().sum(-1) / targets.square().sum(-1).clamp_min(1e-6)
        angle = 1 - cosine_similarity(queries, targets, dim=-1)
        return (relative + angle).mean() + _CLASSIFICATION * inverter.softmax.loss(queries, ids)

    fit(inverter, loss, hold_out(len(auxiliary.ids)), Recipe(options.steps, options.batch, options.rate), progress)
    return inverter


def _needs(options: _Options) -> frozenset[Capability]:
    return frozenset({"auxiliary", "embedding", "prior"} if options.stage == 2 else {"auxiliary", "embedding"})


ATTACK: Final = AttackKind(
    AttackCard(
        name="revertlm",
        source=(
            "Shu, Li, Dong, Meng, Zhu, arXiv 2501.05965. Only the abstract was available: two stages, representations to "
            "embeddings, then a generative model. Everything below that is derived."
        ),
        threat_model=(
            "Owns text and can send it through the same cut and defence, knows the public token table, owns a language model "
            "with the victim's tokenizer and knows the length; no client layers."
        ),
        needs=frozenset({"auxiliary", "embedding", "prior"}),
        parameters={
            "stage": "1: likeliest token of the projected states; 2: the language model writes",
            "steps": "training steps of stage 1",
            "batch": "sequences per step of stage 1",
            "rate": "highest learning rate, both stages",
            "sequences": "most sequences stage 2 learns from, at most a quarter of the text; stage 1 does not see them",
            "epochs": "passes of stage 2",
            "rank": "of the low-rank corrections of query and value projections",
            "beams": "width of the beam search; 1 is greedy",
            "mix": "weight of stage 1's log-probabilities added to the language model's, per token; 0 is stage 2 alone",
        },
        deviations=(
            "Architectures, losses and sizes are derived, the paper's are unknown. The projector corrects a ridge map and sees "
            "sinusoidal positions; hidden states are standardised first; the cross-entropy is a sampled softmax with token "
            "frequencies. Stage 2 is shown the mean of its own embeddings under stage 1's guess, so that any "
            "model of the same vocabulary serves; it learns from 400 sequences by default where the derivation says 20,000, "
            "and is read greedily instead of with 4 beams."
        ),
        expected=(
            "Attack scores of 38 to 75 % (published, definition unknown). Stage 1 at least 95 % of tokens at k ≤ 4 with a "
            "million tokens, undefended (prediction)."
        ),
    ),
    _Options,
    _prepare,
    _needs,
)
