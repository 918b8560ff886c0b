"""All candidate cuts of a model with their costs, and which to take, before any weight is fetched."""

from __future__ import annotations

from typing import Final

import msgspec

from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import LOSSLESS, CutCost, WireBytes, cut_cost, wire_bytes
from cutlayer.models.parameters import Parameters
from cutlayer.types import Cut

RECOMMENDABLE: Final = (2, 4, 8)
PRIVACY_NOTE: Final = (
    "Depth is no proof of privacy. A deeper cut may leak less; only attacks on the hidden states of this "
    "model at this cut measure how much."
)
FORMATS_NOTE: Final = (
    "int8 and int4 are sizes to compare with other engines; cutlayer itself computes in float32, bfloat16 or float16."
)

TIED_NOTE: Final = (
    "In bfloat16 on a processor with matrix units the client holds the output head once more, as those units read it: "
    "{gb:.2f} GB on top, because it is the embedding otherwise."
)


class Plan(msgspec.Struct, frozen=True):
    """All candidate cuts of a model, and the recommended one.

    Attributes:
        model: as the caller named it.
        parameters: counts by group.
        conditions: what was assumed.
        wire: bytes per token by codec; the same for every cut.
        codec: the one that carries the compute dtype without rounding.
        cuts: the candidates.
        recommended: one of their names, or None when none will do.
        reason: why.
        notes: what to keep in mind.
    """

    model: str
    parameters: Parameters
    conditions: Conditions
    wire: dict[str, WireBytes]
    codec: str
    cuts: tuple[CutCost, ...]
    recommended: str | None
    reason: str
    notes: tuple[str, ...]


def make_plan(model: str, parameters: Parameters, conditions: Conditions, cuts: tuple[str, ...] = ()) -> Plan:
    """Cost every candidate cut and recommend one.

    Args:
        model: name shown in the plan.
        parameters: from `cutlayer.models.parameters.count_parameters`.
        conditions: machines and link.
        cuts: further candidates, in the form ``A:B``.

    Raises:
        CutError: a cut of `cuts` does not fit the model.
    """
    layers = len(parameters.layers)
    wire = wire_bytes(parameters.hidden_size)
    chosen = {str(cut): cut for cut in (*symmetric_cuts(layers), *(Cut.parse(text, layers) for text in cuts))}
    plans = tuple(cut_cost(parameters, cut, conditions, wire) for cut in chosen.values())
    recommended, reason = recommend(plans, conditions)
    return Plan(
        model=model,
        parameters=parameters,
        conditions=conditions,
        wire=wire,
        codec=LOSSLESS[conditions.dtype],
        cuts=plans,
        recommended=recommended,
        reason=reason,
        notes=(FORMATS_NOTE, *_second_head(parameters, conditions), PRIVACY_NOTE),
    )


def _second_head(parameters: Parameters, conditions: Conditions) -> list[str]:
    """What packing costs, see `cutlayer.models.packed`."""
    if not parameters.tied or conditions.dtype != "bfloat16":
        return []
    return [TIED_NOTE.format(gb=2 * parameters.embedding / 1e9)]


def symmetric_cuts(layers: int) -> list[Cut]:
    """k = m = 0, 1, 2, 4, 8, … as long as the server is left a layer.

    Asymmetric cuts are for the caller to name: which end leaks more depends on the model, and no rule holds for all.
    """
    depths = [0] + [1 << power for power in range(layers.bit_length()) if 2 << power < layers]
    return [Cut(depth, layers - depth, layers) for depth in depths]


def recommend(cuts: tuple[CutCost, ...], conditions: Conditions) -> tuple[str | None, str]:
    """Pick a cut: k = m = 2, or with a memory bound the deepest of `RECOMMENDABLE` that fits it.

    Returns:
        (cut or None, the reason in words).
    """
    able = [cut for cut in cuts if cut.head_layers == cut.tail_layers and cut.head_layers in RECOMMENDABLE]
    if not able:
        return None, "the model has too few layers to keep two on each side of the server"
    shallowest = able[0]
    needs = f"{shallowest.client_bytes / 1e9:.2f} GB on the client"
    if conditions.client_memory_gb is None:
        return shallowest.cut, (
            f"k = m = 2, the default: the server gets neither embeddings nor final states, for {needs}; "
            "with a memory bound the deepest cut that fits is taken"
        )
    bound = f"{conditions.client_memory_gb:g} GB"
    fitting = [cut for cut in able if cut.fits]
    if not fitting:
        return None, (
            f"none meets the bound: k = m = 2 needs {needs} in {conditions.dtype} with {conditions.context} positions, "
            f"the bound is {bound}; allow more memory, a shorter context or a smaller model"
        )
    deepest = fitting[-1]
    return deepest.cut, (
        f"k = m = {deepest.head_layers}, the deepest of {', '.join(map(str, RECOMMENDABLE))} within {bound}: "
        f"it needs {deepest.client_bytes / 1e9:.2f} GB on the client"
    )
