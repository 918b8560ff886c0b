"""Where training begins: which tokens the head guesses among, and inputs its layer already understands.

The maps from token and state to the layer's input are fitted in closed form, by ridge regression on the layer's true input. From
there the model's own layer, norm and output give usable guesses before the first step of training.

Notation: N positions, D hidden size, V vocabulary, R tokens of the head's output, m tail layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import rms_norm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.client.speculation.head.examples import Example
    from cutlayer.client.speculation.head.network import DraftHead
    from cutlayer.models.parts import ClientParts, Tail

_RIDGE: Final = 1e-3
"""Of the mean of the squared inputs' sums."""


def frequent_tokens(examples: Iterable[Example], vocabulary: int, count: int) -> torch.Tensor:
    """The `count` tokens [R] seen or thought likeliest most often; of those never seen the first, which are the commoner."""
    seen = torch.zeros(vocabulary, dtype=torch.long)  # [V]
    for example in examples:
        for tokens in (example.ids, example.likely[:, 0]):
            seen += torch.bincount(tokens.long(), minlength=vocabulary)
    return seen.sort(descending=True, stable=True).indices[:count].sort().values


@torch.inference_mode()
def fit_inputs(head: DraftHead, parts: ClientParts, examples: Sequence[Example]) -> None:
    """Set the head's input maps to what these texts say is best."""
    embedding = parts.head.embedding()
    size = embedding.shape[1:]
    tokens, returned, own, targets = [], [], [], []
    for example in examples:
        wanted, features = _tail_states(parts.tail, example.returned.to(embedding))  # [T, D] each
        tokens.append(rms_norm(embedding[example.ids[1:].long()], size))
        returned.append(rms_norm(example.returned[:-1].to(embedding), size))
        own.append(rms_norm(features[:-1], size))
        targets.append(wanted[1:])
    token, target = torch.cat(tokens).double(), torch.cat(targets).double()  # [N, D] each
    both = torch.cat([token, torch.cat(returned).double(), torch.ones_like(token[:, :1])], dim=1)  # [N, 2 D + 1]
    solved = _ridge(both, target)  # [2 D + 1, D]
    head.token.weight.copy_(solved[: size[0]].T)
    head.token.bias.copy_(solved[-1])
    head.returned.weight.copy_(solved[size[0] : -1].T)
    rest = target - token @ solved[: size[0]] - solved[-1]
    head.own.weight.copy_(_ridge(torch.cat(own).double(), rest).T)


def _tail_states(tail: Tail, returned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input of the tail's last layer and the final, normed state, [T, D] each."""
    output = tail.shell.base_model(inputs_embeds=returned[None], use_cache=False, output_hidden_states=True)
    return output.hidden_states[tail.layers - 1][0], output.hidden_states[-1][0]


def _ridge(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Least squares with a little shrinkage: inputs [N, I] → targets [N, D], as a matrix [I, D]."""
    gram = inputs.T @ inputs  # [I, I]
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, inputs.T @ targets)  # type: ignore[no-any-return]
