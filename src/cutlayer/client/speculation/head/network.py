"""The draft head: the model's own last layer, changed by low rank, with new inputs and a smaller output.

At position i it reads the token there and a state of the position before, and says what follows:

    u_i = token(rms(e(x_i))) + returned(rms(h_{i−1}))      h: what the server returned, once the position before was verified
    u_i = token(rms(e(x_i))) + own(rms(f_{i−1}))           f: the head's own feature, as long as it is a guess
    f_i = norm(layer(u_1 … u_i)),  q_i = softmax(f_i · output rows)

Source: EAGLE (arXiv 2401.15077); own features in place of the model's while training, from EAGLE-3 (arXiv 2503.01840); an output
over frequent tokens alone, from FR-Spec (arXiv 2502.14856).

Deviations: the layer is not new but the client's last one, so that the head starts with attention, feed-forward part, norm and
output that fit its features, and its file holds the changes alone. Any family works, for the layer stays transformers' code.
A token's rows of embedding and output are the model's and are in no file either.

Notation: B batch, T tokens, D hidden size, V vocabulary, R tokens of the smaller output, r rank.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import rms_norm

from cutlayer.client.speculation.head.low_rank import LowRank
from cutlayer.errors import InputError
from cutlayer.models.packed import pack, unpack
from cutlayer.models.parts import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from cutlayer.models.cache import RollbackCache
    from cutlayer.models.parts import ClientParts, Tail


class Outlook(NamedTuple):
    """What the head makes of positions."""

    features: torch.Tensor
    """[B, T, D]"""
    logits: torch.Tensor
    """[B, T, R], of what follows each."""


class DraftHead(Part):
    """See the module.

    Args:
        parts: the client's layers; their weights are shared, packed ones copied.
        vocabulary: [R] token ids the head may guess.
        rank: r of the changes to each linear map of the layer.

    Raises:
        InputError: the client holds no layer after the cut.
    """

    def __init__(self, parts: ClientParts, vocabulary: torch.Tensor, rank: int) -> None:
        super().__init__(_last_layer(parts.tail), layers=1, opened=())
        weight = parts.head.embedding()
        size = weight.shape[1]
        self._embedding = [weight]  # in a list, so that it is no parameter of this module
        self.vocabulary = vocabulary.to(weight.device, torch.long)
        self.rank = rank
        _change(self.shell.base_model.layers[0], rank)
        self.shell.set_output_embeddings(_rows(self.shell.get_output_embeddings(), self.vocabulary))
        self.token = nn.Linear(size, size)
        self.returned = nn.Linear(size, size, bias=False)
        self.own = nn.Linear(size, size, bias=False)
        self.dtype = self.token.weight.dtype
        """Of its inputs."""
        self.to(weight.device)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are the head's own, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def folded(self, dtype: torch.dtype) -> DraftHead:
        """This head, from now on for guessing alone: its changes folded in, weights in `dtype`, packed where that gains."""
        for parent in list(self.shell.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LowRank):
                    setattr(parent, name, child.folded())
        self.dtype = dtype
        self.to(dtype).requires_grad_(False).eval()
        pack(self)
        return self

    @property
    def window(self) -> int | None:
        """Positions the layer looks back, itself included; None for all."""
        config = self.shell.base_model.config
        kinds = getattr(config, "layer_types", None)
        return None if kinds and kinds[0] == "full_attention" else getattr(config, "sliding_window", None)

    def inputs(self, ids: torch.Tensor, before: torch.Tensor, *, own: bool) -> torch.Tensor:
        """What the layer reads.

        Args:
            ids: tokens [B, T].
            before: state of the position before each [B, T, D], zeros where there is none.
            own: whether these are the head's own features, and not what the server returned.

        Returns:
            [B, T, D]
        """
        size, dtype = before.shape[-1:], self.dtype
        tokens = rms_norm(self._embedding[0][ids].to(dtype), size)  # [B, T, D]
        states = rms_norm(before.to(dtype), size)  # [B, T, D]
        return self.token(tokens) + (self.own if own else self.returned)(states)  # type: ignore[no-any-return]

    def forward(self, inputs: torch.Tensor, cache: RollbackCache, keep: int = 0, backs: Sequence[int] = ()) -> Outlook:
        """Inputs [B, T, D] of further positions → their outlook, with logits of the last `keep` only (0 keeps all). `backs` [T]
        as in `Tree.extend`."""
        count = inputs.shape[1]
        return _outlook(
            self._run(
                self.shell,
                cache,
                count,
                backs,
                inputs_embeds=inputs,
                logits_to_keep=keep,
                output_hidden_states=True,
            )
        )

    def masked(self, inputs: torch.Tensor, mask: torch.Tensor, cache: object) -> Outlook:
        """As `forward`, with gradients: into any cache of transformers', under an additive mask [1, 1, T, S]."""
        kinds = getattr(self.shell.base_model.config, "layer_types", None)
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]  # [1, T]
        return _outlook(
            self.shell(
                inputs_embeds=inputs,
                position_ids=positions,
                attention_mask={kinds[0]: mask} if kinds else mask,
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
        )


def _outlook(output: object) -> Outlook:
    return Outlook(output.hidden_states[-1], output.logits)  # type: ignore[attr-defined]


def _last_layer(tail: Tail) -> PreTrainedModel:
    """The tail's shell with its last layer alone, on the same weights; packed ones are unpacked, and take memory of their own."""
    if not tail.layers:
        raise InputError("a draft head is made from the client's last layer, and this cut leaves it none; cut at A:-1")
    shared = {id(tensor): tensor for tensor in chain(tail.shell.parameters(), tail.shell.buffers())}
    shell: PreTrainedModel = copy.deepcopy(tail.shell, shared)
    base = shell.base_model
    base.layers = base.layers[-1:]
    base.config.num_hidden_layers = 1
    if getattr(base.config, "layer_types", None):
        base.config.layer_types = base.config.layer_types[-1:]
    for module in base.layers.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = 0
    unpack(shell)
    return shell


def _change(layer: nn.Module, rank: int) -> None:
    """Let every linear map of the layer be changed by low rank."""
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank))


def _rows(output: nn.Linear, vocabulary: torch.Tensor) -> nn.Linear:
    """The output head for some tokens only."""
    rows = nn.Linear(output.in_features, len(vocabulary), output.bias is not None, device="meta")
    for name, weight in output.named_parameters():
        setattr(rows, name, nn.Parameter(weight.detach()[vocabulary], requires_grad=False))
    return rows
