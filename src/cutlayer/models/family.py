"""Which models can be cut, as data, and why others cannot.

A family is in the table when the founding test (split equals unsplit) covers it. There is no per-family forward code:
each part runs the family's own transformers model with fewer layers, so all a family needs is the name of its final norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from transformers import AutoConfig

from cutlayer.errors import ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

# model_type → attribute of the base model that holds the final norm
FINAL_NORM: Final[dict[str, str]] = {
    "cohere": "norm",
    "gemma": "norm",
    "gemma2": "norm",
    "gemma3_text": "norm",
    "gpt_neox": "final_layer_norm",
    "llama": "norm",
    "mistral": "norm",
    "mixtral": "norm",
    "olmo2": "norm",
    "phi3": "norm",
    "qwen2": "norm",
    "qwen3": "norm",
    "qwen3_moe": "norm",
    "smollm3": "norm",
    "starcoder2": "norm",
}

# A cut is exact only if a layer needs nothing but its input, its own cache and the position.
_LAYOUTS: Final = frozenset({"full_attention", "sliding_attention"})
# These recompute their frequencies from the longest position of each forward, so a chunked prefill differs from a whole one.
_LENGTH_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})


def read_config(directory: Path) -> PreTrainedConfig:
    """Read and check ``config.json`` of `directory`, without touching weights.

    Raises:
        ModelNotFoundError: no readable ``config.json``.
        UnsupportedModelError: the model cannot be cut.
    """
    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(
            f"{directory} holds no config.json; a model directory has config.json and *.safetensors"
        )
    return read_config_file(directory / "config.json")


def read_config_file(file: Path) -> PreTrainedConfig:
    """Read and check a file with the content of a ``config.json``, whatever its name.

    Raises:
        UnsupportedModelError: it is no model configuration, or the model cannot be cut.
    """
    try:
        config = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModelError(f"cannot read {file}: {error}") from error
    check(config)
    return config


def check(config: PreTrainedConfig) -> None:
    """Refuse what cannot be cut exactly.

    Raises:
        UnsupportedModelError: with the reason.
    """
    kind = config.model_type
    for holds, reason in (
        (
            getattr(config, "is_encoder_decoder", False),
            "it is an encoder-decoder; only decoder-only models have one cut",
        ),
        (hasattr(config, "vision_config"), "it is multimodal; extract its text model first"),
        (
            getattr(config, "num_kv_shared_layers", 0),
            "its layers share keys and values, which would have to cross the cut",
        ),
        (getattr(config, "quantization_config", None), "its checkpoint is quantised; use the unquantised one"),
        (
            not set(getattr(config, "layer_types", None) or ()) <= _LAYOUTS,
            f"its attention layouts {sorted(set(getattr(config, 'layer_types', None) or ()) - _LAYOUTS)} are unknown here",
        ),
        (
            _rope_types(config) & _LENGTH_DEPENDENT_ROPE,
            "its rotary frequencies depend on the length of each forward, so chunked prefill would not be exact",
        ),
        (
            kind not in FINAL_NORM,
            f"split has not been verified equal to unsplit for it; verified: {', '.join(sorted(FINAL_NORM))}",
        ),
    ):
        if holds:
            raise UnsupportedModelError(f"model type {kind!r} cannot be cut: {reason}")


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Rotary kinds in use; families with one kind per layer type nest them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {str(group["rope_type"]) for group in groups if "rope_type" in group}
