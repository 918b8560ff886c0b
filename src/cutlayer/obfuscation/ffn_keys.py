"""Keys of one feed-forward block: a permutation Z of its inner channels, and positive scales S of `up` that `down` undoes.

`gate` is not scaled: SiLU and GELU are not homogeneous. In a mixture of experts every expert has its own Z and S, and the
experts themselves are reordered together with the rows of their router.

Source: Lin et al. 2026 (arXiv 2603.01499), §5.2.4.

Deviations:
    The paper first normalises each expert's router vector; that changes router logits and with them the choice of experts, and is
    left out.

Notation: f inner channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.obfuscation.row_map import RowMap
from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from cutlayer.obfuscation.settings import Settings
    from cutlayer.types import Secret

LARGEST_SCALE: Final = 1.5


class FfnKeys(NamedTuple):
    """Row maps of one block; `down` acts on the rows of the transposed down projection."""

    gate: RowMap
    up: RowMap
    down: RowMap


def draw_ffn_keys(seed: Secret, label: str, channels: int, settings: Settings) -> FfnKeys:
    """The keys of the block of this label, e.g. ``L3`` or ``L3/E5``."""
    if "ffn" not in settings.components:
        same = RowMap.identity(channels)
        return FfnKeys(same, same, same)
    stream = Stream(seed, f"{label}/ffn")
    order = stream.permutation(channels)
    scale = stream.scales(channels, LARGEST_SCALE)
    return FfnKeys(gate=RowMap(order), up=RowMap(order, scale=scale), down=RowMap(order, scale=1 / scale))


def draw_expert_order(seed: Secret, layer: int, experts: int, settings: Settings) -> RowMap:
    """Source expert of each expert."""
    if "experts" not in settings.components:
        return RowMap.identity(experts)
    return RowMap(Stream(seed, f"L{layer}/experts").permutation(experts))
