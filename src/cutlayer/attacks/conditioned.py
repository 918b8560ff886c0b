"""A language model that writes a text while looking at guessed embeddings of it: stage 2 of RevertLM.

Input [ê_1 … ê_T, sep, x_1 … x_{T−1}] as embeddings; at sep and after, it predicts x_1 … x_T. Only low-rank corrections of the
query and value projections are trained, by teacher forcing.

Footgun: where ê says little, it writes fluent text that was never there. Confidence then is the model's opinion of its own
text.

Notation: S sequences, T tokens, D hidden size, V vocabulary, B beams.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from cutlayer.attacks.lora import adapt
from cutlayer.attacks.training import fit, hold_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from cutlayer.attacks.training import Recipe

_ADAPTED: Final = ("q_proj", "v_proj", "qkv_proj", "query_key_value")
_SHOWN: Final = 64
"""Tokens of each position that a guess is averaged over."""


class ConditionedModel:
    """A copy of a language model, adapted.

    Args:
        model: stays as it is.
        rank: of the corrections; α is twice that.
        device: where the copy lives, in float32.

    Raises:
        InputError: no query or value projections known by name.
    """

    def __init__(self, model: PreTrainedModel, rank: int, device: str) -> None:
        self._model = copy.deepcopy(model).float().to(device)
        adapt(self._model, _ADAPTED, rank, 2.0 * rank)
        self._embed = self._model.get_input_embeddings()
        config = self._model.config
        start = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
        separator = start[0] if isinstance(start, list) else start or 0
        self._separator = torch.tensor([[separator]], device=device)

    def expected(self, log_probs: torch.Tensor) -> torch.Tensor:
        """The mean of this model's own embeddings under guessed tokens, so that its table may differ from the victim's.

        Args:
            log_probs: of each token, [..., V].

        Returns:
            [..., D], D this model's.
        """
        best = log_probs.topk(min(_SHOWN, log_probs.shape[-1]), dim=-1)
        shares = torch.softmax(best.values, dim=-1).to(self._separator.device)  # [..., K]
        with torch.no_grad():
            rows: torch.Tensor = self._embed(best.indices.to(self._separator.device))  # [..., K, D]
        return (shares[..., None] * rows).sum(-2)

    def train(
        self,
        embeddings: torch.Tensor,
        ids: torch.Tensor,
        recipe: Recipe,
        progress: Callable[[float], None],
    ) -> None:
        """Teacher forcing on the attacker's text.

        Args:
            embeddings: `expected` guesses [S, T, D].
            ids: what they are guesses of, [S, T].
            recipe: in sequences.
            progress: told the share done.
        """

        def loss(sequences: torch.Tensor) -> torch.Tensor:
            truth = ids[sequences].to(self._separator.device)
            logits = self._logits(embeddings[sequences].to(truth.device), truth[:, :-1])  # [S, T, V]
            return cross_entropy(logits.flatten(0, 1), truth.flatten())

        fit(self._model, loss, hold_out(len(ids)), recipe, progress)

    def decode(self, embeddings: torch.Tensor, evidence: torch.Tensor, beams: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best text of exactly T tokens that beam search finds.

        Args:
            embeddings: `expected` guesses [T, D].
            evidence: added to the model's log-probabilities, [T, V].
            beams: width; 1 is greedy.

        Returns:
            Tokens [T], and the probability each was given where it was written, [T].
        """
        cache = DynamicCache(config=self._model.config)
        separator = self._embed(self._separator)[0]  # [1, D]
        inputs = torch.cat([embeddings.to(separator), separator])[None]  # [1, T + 1, D]
        texts = torch.empty(1, 0, dtype=torch.long, device=separator.device)  # [B, t]
        chances = torch.empty(1, 0, device=separator.device)
        totals = torch.zeros(1, device=separator.device)  # [B]
        with torch.no_grad():
            for weight in evidence.to(separator.device):
                output = self._model(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                written = torch.log_softmax(output.logits[:, -1], dim=-1)  # [B, V]
                log_probs = torch.log_softmax(written + weight, dim=-1)
                best = (totals[:, None] + log_probs).flatten().topk(min(beams, log_probs.numel()))
                origin, token = best.indices // log_probs.shape[-1], best.indices % log_probs.shape[-1]
                cache.reorder_cache(origin)
                totals = best.values
                chances = torch.cat([chances[origin], log_probs[origin, token, None].exp()], dim=1)
                texts = torch.cat([texts[origin], token[:, None]], dim=1)
                inputs = self._embed(token[:, None])  # [B, 1, D]
        return texts[0].cpu(), chances[0].cpu()

    def _logits(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[S, T, V] of guesses [S, T, D] and all tokens but the last, [S, T − 1]."""
        separator = self._embed(self._separator).expand(len(ids), -1, -1)  # [S, 1, D]
        inputs = torch.cat([embeddings, separator, self._embed(ids)], dim=1)  # [S, 2T, D]
        logits: torch.Tensor = self._model(
            inputs_embeds=inputs, use_cache=False, logits_to_keep=embeddings.shape[1]
        ).logits
        return logits
