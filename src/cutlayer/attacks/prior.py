"""The attacker's language model: what a text is likely to say before anything was observed.

Any public causal model will do. It runs in bfloat16 by default: a prior need not be exact, and matrix units are faster there.

Notation: B prefixes, T tokens, N nodes, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from cutlayer.attacks.tree import TreeForward
from cutlayer.models.parts import Head

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel


class Prior:
    """Next-token probabilities.

    Args:
        model: a causal model with the victim's vocabulary.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Prior:
        """Load a model's whole checkpoint."""
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
        return cls(model.to(device))

    def log_probs(self, prefixes: torch.Tensor) -> torch.Tensor:
        """log p(next token | prefix), [B, V] float32, of prefixes [B, T]."""
        with torch.inference_mode():
            logits = self.model(prefixes.to(self.model.device), use_cache=False, logits_to_keep=1).logits[:, -1]
        return torch.log_softmax(logits.float(), dim=-1)

    def first(self) -> torch.Tensor:
        """log p of the first token of a text, [V]: what the model says after its beginning-of-text token."""
        start = self.model.config.bos_token_id
        return self.log_probs(torch.tensor([[0 if start is None else start]]))[0]

    def session(self) -> PriorTree:
        """A tree of continuations that shares keys and values."""
        return PriorTree(self)


class PriorTree:
    """As `TreeForward`, returning next-token log-probabilities after every node."""

    def __init__(self, prior: Prior) -> None:
        model = prior.model
        self._tree = TreeForward(Head(model, model.config.num_hidden_layers, ()))
        self._output = model.get_output_embeddings()

    def extend(self, ids: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Add tokens; log p(next | up to the token), [N, V] float32."""
        hidden = self._tree.extend(ids, parents)
        with torch.inference_mode():
            logits = self._output(hidden.to(self._output.weight.dtype))
        return torch.log_softmax(logits.float(), dim=-1)

    def keep(self, nodes: Sequence[int]) -> None:
        """See `TreeForward.keep`."""
        self._tree.keep(nodes)
