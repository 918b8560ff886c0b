"""Rotary frequency pairs, and the windowed permutation of Algorithm 2 that moves them.

Channels j and j + c/2 of a head are turned together by the angle position·ζⱼ. Swapping two pairs is exact only where their
frequencies are equal; those of the slow pairs nearly are, and the window sampler moves hardly any others.

Source: Lin et al. 2026 (arXiv 2603.01499), Algorithm 2.

Deviations:
    The exponent printed for ζ is not that of rotary embeddings where blocks are pairs; the frequencies here are the engine's own,
    scaling of long contexts included.
    The sampler draws the width of a window, w ∈ {1 … β}, with probability ∝ exp(γ(ζ_{t+w−1} − ζ_t)).

Notation: c dimension of a head, c/2 pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from cutlayer.obfuscation.stream import Stream


def frequencies(config: PreTrainedConfig, head_dim: int) -> torch.Tensor:
    """ζ, radians per position of each pair, float64, [c/2]."""
    parameters: dict[str, Any] = config.rope_parameters
    if parameters["rope_type"] == "default":
        return default_frequencies(float(parameters["rope_theta"]), head_dim)
    scaled: torch.Tensor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)[0]
    return scaled.double()


def default_frequencies(theta: float, head_dim: int) -> torch.Tensor:
    """θ^(−2j/c), float64, [c/2]."""
    return torch.pow(theta, -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def windowed_permutation(stream: Stream, zeta: torch.Tensor, beta: int, gamma: float) -> torch.Tensor:
    """Source pair of each pair, int64, [c/2].

    Args:
        stream: secret draws.
        zeta: frequencies, falling, [c/2].
        beta: β, the widest window.
        gamma: γ, how strongly unequal frequencies keep a window narrow.
    """
    order: list[int] = []
    while len(order) < len(zeta):
        first = len(order)
        reach = zeta[first : first + beta]
        chances = torch.softmax(gamma * (reach - reach[0]), 0).cumsum(0)
        width = min(int((stream.uniform(1) > chances).sum()) + 1, len(reach))
        order += [first + int(other) for other in stream.permutation(width)]
    return torch.tensor(order)


def both_halves(pairs: torch.Tensor) -> torch.Tensor:
    """A value per pair, [c/2], as a value per channel, [c]."""
    return torch.cat((pairs, pairs))
