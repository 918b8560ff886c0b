"""How long hidden states are at a cut: the unit in which `relative` strengths are given.

The median over a fixed, public sequence of token ids, so that client and attacker agree on it without any text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.models.parts import Head

_SEQUENCES: Final = 8
_LENGTH: Final = 48


class Scale(NamedTuple):
    """Size of the hidden states at a cut."""

    norm: float
    """Median L2 norm."""
    width: int
    """D."""


def median_norm(head: Head | None, mechanism: str) -> Scale:
    """Median L2 norm of the hidden states that leave `head`, over pseudo-random tokens.

    Args:
        head: the client's first layers.
        mechanism: who asks, for the message.

    Raises:
        InputError: there is no head to measure.
    """
    if head is None:
        raise InputError(f"defence {mechanism}: relative strengths need the client's layers; give an absolute one")
    table = head.embedding()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(table), (_SEQUENCES, _LENGTH), generator=generator).to(table.device)
    with torch.inference_mode():
        hidden: torch.Tensor = head(ids, head.new_cache()).float()  # [8, 48, D]
    return Scale(float(hidden.norm(dim=-1).median()), hidden.shape[-1])
