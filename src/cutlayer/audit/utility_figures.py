"""What a defence costs on the very prompts that are attacked, as figures of a record.

Perplexity needs sequences of one length: of the prompts, those are taken, cut to the length that keeps most tokens.

Notation: S sequences, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cutlayer.audit.scoring import Outcome
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.audit.scene import Scene

_NAMES = ("perplexity", "perplexity_increase", "kl", "agreement")


def utility_outcome(directory: Path, scene: Scene, prompts: Sequence[Sequence[int]]) -> Outcome:
    """Perplexity, its relative increase, and how far next-token distributions move.

    Args:
        directory: of the model.
        scene: cut and defence.
        prompts: token ids.
    """
    from cutlayer.audit.utility import Utility

    measured = Utility(directory, scene.cut).measure(scene, rectangle(prompts))
    found = {name: getattr(measured, name) for name in _NAMES}
    return Outcome(
        {name: value for name, value in found.items() if isinstance(value, Figure)},
        {name: "not measured" for name, value in found.items() if not isinstance(value, Figure)},
    )


def rectangle(prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """The prompts of at least T tokens cut to T, [S, T], for the T that keeps most.

    Examples:
        >>> rectangle([[1, 2], [3, 4, 5], [6, 7, 8, 9]]).tolist()
        [[3, 4, 5], [6, 7, 8]]
    """
    lengths = sorted({len(ids) for ids in prompts}, reverse=True)
    best = max(lengths, key=lambda length: length * sum(len(ids) >= length for ids in prompts))
    return torch.tensor([list(ids[:best]) for ids in prompts if len(ids) >= best])
