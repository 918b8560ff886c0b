"""Which models can be obfuscated, in which modes, and why others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from cutlayer.errors import InputError, UnsupportedModelError
from cutlayer.models.checkpoint import read_settings
from cutlayer.models.family import read_config

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

Mode = Literal["exact", "noisy", "paper", "monomial"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)


class Expert(NamedTuple):
    """Tensor names of a mixture of experts, below ``model.layers.L.``; ``{}`` is the expert's number."""

    router: str
    gate: str
    up: str
    down: str


class Family(NamedTuple):
    """What the transformation has to know of a model type.

    Args:
        modes: in which it was verified.
        zero_centred: norms store their weight less 1.
        scaled_embedding: embeddings are multiplied by √(hidden size).
        branch_norms: attention and FFN are normalised again before they are added to the stream.
        head_norms: queries and keys are normalised per head before their rotation.
        expert: names of experts, where it has any.
    """

    modes: tuple[Mode, ...] = MODES
    zero_centred: bool = False
    scaled_embedding: bool = False
    branch_norms: bool = False
    head_norms: bool = False
    expert: Expert | None = None


# A norm between writer and stream weighs the channels of the plain basis one by one: only monomial keys commute with it.
_GEMMA2: Final = Family(("monomial",), zero_centred=True, scaled_embedding=True, branch_norms=True)

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norms=True),
    "gemma": Family(zero_centred=True, scaled_embedding=True),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2._replace(head_norms=True),
    "mixtral": Family(
        expert=Expert(
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.{}.w1",
            "block_sparse_moe.experts.{}.w3",
            "block_sparse_moe.experts.{}.w2",
        )
    ),
    "qwen3_moe": Family(
        head_norms=True,
        expert=Expert("mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    ),
}

_LAYER_NORM: Final = (
    "its LayerNorm subtracts the mean over hidden channels, which no secret basis but a permutation keeps"
)
_REASONS: Final = {
    "cohere": _LAYER_NORM,
    "gpt_neox": _LAYER_NORM,
    "starcoder2": _LAYER_NORM,
    "olmo2": "it normalises queries and keys over all heads together, which keys per head do not keep",
    "phi3": "its projections are fused into one tensor each, which are not taken apart here",
    "smollm3": "some of its layers have no rotary positions, which has not been verified",
}


def family_of(directory: Path) -> tuple[PreTrainedConfig, Family]:
    """Read ``config.json`` and refuse what the transformation would not leave intact.

    Raises:
        ModelNotFoundError: no readable ``config.json``.
        UnsupportedModelError: with the reason.
    """
    settings = read_settings(directory)
    kind = settings.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        reason = _REASONS.get(str(kind), "exactness has not been verified for it")
        raise UnsupportedModelError(
            f"model type {kind!r} cannot be obfuscated: {reason}; supported: {', '.join(FAMILIES)}"
        )
    if settings.get("quantization_config"):
        raise UnsupportedModelError(
            f"{directory} is quantised; obfuscate the unquantised checkpoint and quantise the result"
        )
    config = read_config(directory)
    if _partly_rotary(config.rope_parameters):
        raise UnsupportedModelError(f"{directory} rotates only part of each head, which the rotary keys do not cover")
    return config, family


def check_mode(kind: str, family: Family, mode: str) -> Mode:
    """Return `mode` as a `Mode` that `family` has.

    Raises:
        InputError: there is no such mode, or not for this family.
    """
    for known in MODES:
        if mode == known:
            if known in family.modes:
                return known
            raise InputError(
                f"mode {mode!r} would not be exact for {kind}: it normalises attention and FFN again before adding them, and "
                f"the weights of those norms only commute with a permutation; use --mode {family.modes[0]}"
            )
    raise InputError(f"unknown mode {mode!r}; available: {', '.join(MODES)}")


def _partly_rotary(parameters: dict[str, Any]) -> bool:
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return any(group.get("partial_rotary_factor", 1.0) != 1.0 for group in groups)
