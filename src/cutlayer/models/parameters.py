"""How many parameters each piece of a model has, from its configuration alone.

The model is built on the meta device (all shapes, no memory: 0.3 s for 70 billion parameters), so the counts are those
of the code that will run, biases, extra norms and experts included, and not a formula per family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cutlayer.errors import UnsupportedModelError
from cutlayer.models.family import FINAL_NORM
from cutlayer.models.parts import empty_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class Parameters(msgspec.Struct, frozen=True):
    """Parameter counts of one model. Buffers (rotary frequencies) are a few hundred bytes per part and left out.

    Attributes:
        embedding: the embedding matrix, V × D.
        layers: each decoder layer.
        layers_read: parameters of each layer that one token passes through: all of them, or with experts the shared
            ones and those of the experts a token is routed to.
        final_norm: the norm after the last layer.
        output_head: the output head's own parameters; 0 when it is the embedding matrix.
        tied: whether embedding and output head are one matrix.
        cached: key and value numbers that each layer caches per position.
        hidden_size: D, the numbers per position on the wire.
    """

    embedding: int
    layers: tuple[int, ...]
    layers_read: tuple[int, ...]
    final_norm: int
    output_head: int
    tied: bool
    cached: int
    hidden_size: int

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self.embedding + sum(self.layers) + self.final_norm + self.output_head

    @property
    def head_read(self) -> int:
        """Parameters that producing the logits of one token reads."""
        return self.final_norm + self.output_head + (self.embedding if self.tied else 0)


def count_parameters(config: PreTrainedConfig) -> Parameters:
    """Count the parameters of a model that `cutlayer.models.family.check` accepted.

    Raises:
        UnsupportedModelError: no model can be built from `config`, or it has parameters outside the known groups.
    """
    try:
        model = empty_model(config)
    except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise UnsupportedModelError(
            f"no {config.model_type} model can be built from this configuration: {error}"
        ) from error
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output.weight is embedding.weight
    layers = tuple(_count(layer) for layer in model.base_model.layers)
    counted = Parameters(
        embedding=_count(embedding),
        layers=layers,
        layers_read=tuple(
            held - _resting(layer, config) for held, layer in zip(layers, model.base_model.layers, strict=True)
        ),
        final_norm=_count(getattr(model.base_model, FINAL_NORM[config.model_type])),
        output_head=_count(output) - (output.weight.numel() if tied else 0),
        tied=tied,
        cached=_cached(model.base_model.layers[0], config),
        hidden_size=config.hidden_size,
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    if counted.total != whole:
        raise UnsupportedModelError(
            f"{config.model_type} model has {whole - counted.total} parameters outside embedding, layers, final "
            "norm and output head, so their side of the cut is unknown"
        )
    return counted


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _resting(layer: nn.Module, config: PreTrainedConfig) -> int:
    """Parameters of the experts that a token is not routed to."""
    held = sum(_count(module) for name, module in layer.named_modules() if name.endswith(".experts"))
    if not held:
        return 0
    experts = int(getattr(config, "num_local_experts", None) or config.num_experts)
    return held - held * int(config.num_experts_per_tok) // experts


def _cached(layer: nn.Module, config: PreTrainedConfig) -> int:
    """Asks the attention module, not the configuration: some hold settings for grouped heads that their model ignores."""
    width, sharing = next(
        (int(found), int(getattr(module, "num_key_value_groups", None) or 1))
        for module in layer.modules()
        if (found := getattr(module, "head_dim", None) or getattr(module, "head_size", None))
    )
    return 2 * width * int(config.num_attention_heads) // sharing
