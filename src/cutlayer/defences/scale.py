"""How long hidden states are at a cut: the unit in which `relative` strengths are given.

The median over a fixed, public sequence of token ids, so that client and attacker agree on it without any text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch

from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.models.parts import Head

_SEQUENCES: Final = 8
_LENGTH: Final = 48


_STATES: Final[WeakKeyDictionary[Head, dict[int, torch.Tensor]]] = WeakKeyDictionary()
"""An attacker builds a defence thousands of times, once per session it simulates."""


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
    hidden = public_states(head)
    return Scale(float(hidden.norm(dim=-1).median()), hidden.shape[-1])


def public_states(head: Head, sequences: int = _SEQUENCES) -> torch.Tensor:
    """Hidden states [sequences · 48, D] that leave `head` for pseudo-random tokens anybody can draw, float32.

    Args:
        head: the client's first layers.
        sequences: how many sequences of 48 tokens.
    """
    held = _STATES.setdefault(head, {})
    if sequences not in held:
        table = head.embedding()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(table), (sequences, _LENGTH), generator=generator).to(table.device)
        with torch.inference_mode():
            hidden: torch.Tensor = head(ids, head.new_cache()).float()  # [S, 48, D]
        held[sequences] = hidden.flatten(0, 1)
    return held[sequences]


def clipped(rows: torch.Tensor, clip: float | None) -> torch.Tensor:
    """Rows [T, D] scaled down to L2 norm `clip` where they are longer."""
    return rows if clip is None else rows * (clip / rows.norm(dim=-1, keepdim=True).clamp_min(clip))
