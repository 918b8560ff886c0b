"""A checkpoint as an attacker reads it: every matrix that touches the residual stream as rows in the stream's basis.

Readers come with the weight of the norm before them, writers with that of the norm behind them, if there is one. The same code
reads a base and its export, since an export is an ordinary checkpoint; the experts of a mixture are taken for one wide block,
because a permutation of experts is one of the rows of such a block.

Notation: V vocabulary, D hidden size, F rows of a matrix (heads, FFN channels of all experts).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import torch

from cutlayer.errors import WeightsError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.obfuscation.families import FAMILIES, family_of
from cutlayer.obfuscation.layout import EMBEDDING, FINAL_NORM, Place, Role, head_dim, layout, plain_shape

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from cutlayer.models.checkpoint import TensorHeader

_BEHIND: Final = {Role.OUTPUT: "post_attention", Role.DOWN: "post_feedforward"}
"""Norm between a writer and the stream, in families that have one."""


class Tensors(Protocol):
    """Named tensors; a `Checkpoint`, or something in its place."""

    def headers(self) -> dict[str, TensorHeader]:
        """Dtype and shape of all."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One of them."""
        ...


class Weights:
    """The stream's readers and writers of one checkpoint, float32.

    Args:
        config: of the checkpoint.
        tensors: of it.
        directory: where a runnable checkpoint is; None where there are only tensors.

    Raises:
        WeightsError: tensors and configuration do not fit each other.
    """

    def __init__(self, config: PreTrainedConfig, tensors: Tensors, directory: Path | None = None) -> None:
        family = FAMILIES[config.model_type]
        self.config = config
        self.directory = directory
        self._tensors = tensors
        self._centre = float(family.zero_centred)
        self._places = layout(config, family, tensors.headers(), output_bias=False)

    @classmethod
    def open(cls, directory: Path) -> Weights:
        """Those of a model directory.

        Raises:
            ModelNotFoundError: there is no model.
            UnsupportedModelError: it is of a family that cannot be obfuscated.
            WeightsError: its checkpoint is unreadable or does not fit its configuration.
        """
        config, _ = family_of(directory)
        return cls(config, Checkpoint(directory), directory)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    @property
    def layers(self) -> int:
        """How many."""
        return int(self.config.num_hidden_layers)

    @property
    def channels(self) -> int:
        """FFN channels, of all layers and experts together."""
        return sum(plain_shape(place, self.config)[0] for place in self._places if place.role is Role.GATE)

    def embedding(self) -> torch.Tensor:
        """[V, D]"""
        return self._read(EMBEDDING)

    def head(self) -> torch.Tensor:
        """Output head with the final norm, [V, D]."""
        place = next(place for place in self._places if place.role is Role.OUTPUT_HEAD)
        return self._read(place.source) * self._norm(FINAL_NORM)

    def rows(self, role: Role, layer: int) -> torch.Tensor:
        """All rows of one kind of matrix in a layer, [F, D]; F is 0 where the layer has none, e.g. no router."""
        found = [place for place in self._places if place.role is role and place.layer == layer and not place.bias]
        return torch.cat([torch.empty(0, self.hidden_size), *map(self._matrix, found)])

    def scores(self, layer: int) -> torch.Tensor:
        """Σ over query heads of W_qᵀW_k at distance zero: what query and key make of two states, [D, D]."""
        queries, keys = self.rows(Role.QUERY, layer), self.rows(Role.KEY, layer)
        c, kv = head_dim(self.config), self.config.num_key_value_heads
        groups = queries.reshape(kv, -1, c, self.hidden_size).sum(1)  # [kv, c, D]
        return groups.reshape(kv * c, -1).T @ keys

    def _matrix(self, place: Place) -> torch.Tensor:
        stored = self._read(place.source.format(place.expert))
        if place.role not in _BEHIND:
            return stored * self._norm(place.norm)
        behind = next((p for p in self._places if p.label == f"L{place.layer}/{_BEHIND[place.role]}"), None)
        return stored.T * (self._norm(behind.source) if behind else 1.0)

    def _norm(self, name: str) -> torch.Tensor:
        return self._read(name) + self._centre

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._tensors.read(name).float()
        if not math.isfinite(float(tensor.sum(dtype=torch.float64))):
            raise WeightsError(
                f"{name} holds values that are not finite; the checkpoint is damaged, fetch or export it again"
            )
        return tensor
