"""Head, Body and Tail: the three parts of a cut model, each holding only its own tensors.

    Head   embedding + layers [0, k)               trusted side
    Body   layers [k, L−m)                         untrusted side
    Tail   layers [L−m, L) + final norm + lm_head  trusted side

Each part is the family's own transformers model with fewer layers, called with hidden states in place of token ids.
Masks, rotary embeddings, logit soft-caps and all other habits of a family therefore stay transformers' code.

Notation: B batch, T tokens, D hidden size, V vocabulary, S positions cached so far.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from cutlayer.models.cache import RollbackCache
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.family import FINAL_NORM, read_config
from cutlayer.models.fill import fill
from cutlayer.models.visibility import positions, visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from cutlayer.tree import Tree
    from cutlayer.types import Cut


class Part(nn.Module):
    """Consecutive layers of a model.

    Args:
        shell: the family's causal model, holding just this part's modules.
        layers: how many layers it holds.
        opened: names of the checkpoint tensors that were opened to fill it.
    """

    def __init__(self, shell: PreTrainedModel, layers: int, opened: tuple[str, ...]) -> None:
        super().__init__()
        self.shell = shell
        self.layers = layers
        self.opened = opened

    def new_cache(self) -> RollbackCache:
        """An empty cache for one session."""
        return RollbackCache(self.layers)

    def weight_bytes(self) -> int:
        """Bytes of this part's parameters and buffers, shared ones once."""
        tensors = {id(t): t for t in (*self.shell.parameters(), *self.shell.buffers())}
        return sum(t.nbytes for t in tensors.values())

    def _run(
        self, model: nn.Module, cache: RollbackCache, count: int, backs: Sequence[int], **inputs: torch.Tensor | int
    ) -> object:
        base, device = cache.position, self.shell.device
        cache.tree.extend(count, backs)
        try:
            # Without branches transformers makes the mask, and for one row or a first chunk knows how to do without.
            mask = self._tree_masks(cache.tree, base) if cache.tree.trunk < cache.position else None
            return model(
                **inputs,
                position_ids=torch.tensor([positions(cache.tree, base)], device=device),  # [1, T]
                attention_mask=mask,
                past_key_values=cache if self.layers else None,
                use_cache=bool(self.layers),
            )
        except BaseException:
            cache.rollback(base)
            raise

    def _tree_masks(self, tree: Tree, start: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks [1, 1, T, S]: one for each kind of layer, or one for all, as the family takes them."""
        config, parameter = self.shell.base_model.config, next(self.shell.parameters())
        window = getattr(config, "sliding_window", None)

        def mask(window: int | None) -> torch.Tensor:
            seen = visible(tree, start, window, parameter.device)  # [T, S]
            lowest = torch.finfo(parameter.dtype).min
            return torch.zeros_like(seen, dtype=parameter.dtype).masked_fill(~seen, lowest)[None, None]

        if getattr(config, "layer_types", None):
            return {"full_attention": mask(None), "sliding_attention": mask(window)}
        return mask(window)


class Head(Part):
    """Embedding and the first k layers."""

    def forward(self, ids: torch.Tensor, cache: RollbackCache, backs: Sequence[int] = ()) -> torch.Tensor:
        """Token ids [B, T] → hidden states [B, T, D]. `backs` [T] as in `Tree.extend`; none for a chain."""
        output = self._run(self.shell.base_model, cache, ids.shape[1], backs, input_ids=ids)
        return output.last_hidden_state  # type: ignore[attr-defined, no-any-return]

    def embedding(self) -> torch.Tensor:
        """Embedding matrix [V, D], for the audit of what crossed the network."""
        return self.shell.get_input_embeddings().weight  # type: ignore[no-any-return]


class Body(Part):
    """The middle layers."""

    def forward(self, hidden: torch.Tensor, cache: RollbackCache, backs: Sequence[int] = ()) -> torch.Tensor:
        """Hidden states [B, T, D] → hidden states [B, T, D]. `backs` [T] as in `Tree.extend`."""
        output = self._run(self.shell.base_model, cache, hidden.shape[1], backs, inputs_embeds=hidden)
        return output.last_hidden_state  # type: ignore[attr-defined, no-any-return]


class Tail(Part):
    """The last m layers, the final norm and the output head."""

    def forward(
        self, hidden: torch.Tensor, cache: RollbackCache, keep: int = 0, backs: Sequence[int] = ()
    ) -> torch.Tensor:
        """Hidden states [B, T, D] → logits of the last `keep` positions [B, keep, V] (0 keeps all T). `backs` [T] as in
        `Tree.extend`."""
        output = self._run(self.shell, cache, hidden.shape[1], backs, inputs_embeds=hidden, logits_to_keep=keep)
        return output.logits  # type: ignore[attr-defined, no-any-return]


class ClientParts(NamedTuple):
    """What the trusted side holds. With tied embeddings the two share one matrix."""

    head: Head
    tail: Tail


def load_body(directory: Path, cut: Cut, dtype: torch.dtype, device: torch.device | str = "cpu") -> Body:
    """Build the server's part and fill it with only its own tensors.

    Raises:
        UnsupportedModelError: the model cannot be cut.
        WeightsError: the checkpoint lacks a tensor.
    """
    config = read_config(directory)
    full = empty_model(config, dtype)
    base = full.base_model
    _drop_embedding(base)
    setattr(base, FINAL_NORM[config.model_type], nn.Identity())
    full.set_output_embeddings(nn.Identity())
    _drop_layers(base, keep=range(cut.start, cut.stop))
    opened = fill(full, Checkpoint(directory), device)
    _renumber(base, config, range(cut.start, cut.stop))
    return Body(_frozen(full), cut.body_layers, opened)


def load_client(directory: Path, cut: Cut, dtype: torch.dtype, device: torch.device | str = "cpu") -> ClientParts:
    """Build the trusted side's two parts and fill them with only their own tensors.

    Raises:
        UnsupportedModelError: the model cannot be cut.
        WeightsError: the checkpoint lacks a tensor.
    """
    config = read_config(directory)
    filled = empty_model(config, dtype)
    outer = [*range(cut.start), *range(cut.stop, cut.layers)]
    _drop_layers(filled.base_model, keep=outer)
    if config.tie_word_embeddings:
        filled.tie_weights()
    opened = fill(filled, Checkpoint(directory), device)
    norm = FINAL_NORM[config.model_type]

    head = empty_model(config, dtype)
    _share(head.base_model, filled.base_model, besides=(norm,))
    setattr(head.base_model, norm, nn.Identity())
    head.set_output_embeddings(nn.Identity())
    _renumber(head.base_model, config, range(cut.start))

    tail = empty_model(config, dtype)
    _share(tail.base_model, filled.base_model)
    _drop_embedding(tail.base_model)
    tail.set_output_embeddings(filled.get_output_embeddings())
    _renumber(tail.base_model, config, range(cut.stop, cut.layers))
    return ClientParts(Head(_frozen(head), cut.head_layers, opened), Tail(_frozen(tail), cut.tail_layers, opened))


def empty_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The whole model on the meta device: all shapes, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)


def _drop_layers(base: PreTrainedModel, keep: range | list[int]) -> None:
    """Replace all layers not in `keep`, so that names of those kept stay the checkpoint's."""
    kept = set(keep)
    base.layers = nn.ModuleList(layer if i in kept else nn.Identity() for i, layer in enumerate(base.layers))


def _drop_embedding(base: PreTrainedModel) -> None:
    embedding = base.get_input_embeddings()
    for name, child in base.named_children():
        if child is embedding:
            setattr(base, name, None)


def _share(base: PreTrainedModel, source: PreTrainedModel, besides: tuple[str, ...] = ()) -> None:
    for name, child in source.named_children():
        if name not in besides:
            setattr(base, name, child)


def _renumber(base: PreTrainedModel, config: PreTrainedConfig, span: range) -> None:
    """Keep only the layers of `span` and make cache indices and per-layer settings start at 0."""
    sliced = copy.deepcopy(config)
    sliced.num_hidden_layers = len(span)
    if getattr(config, "layer_types", None):
        sliced.layer_types = [config.layer_types[i] for i in span]
    sliced._attn_implementation = base.config._attn_implementation
    base.config = sliced
    base.layers = nn.ModuleList(base.layers[i] for i in span)
    for index, layer in enumerate(base.layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index


def _frozen(shell: PreTrainedModel) -> PreTrainedModel:
    return shell.eval().requires_grad_(False)
