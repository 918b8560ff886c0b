"""`config.json` and `generation_config.json` of an export.

Only fields that an engine needs are copied: what else a config may hold, such as the name of the base, stays behind. Its shapes
(layers, heads, vocabulary) still tell which family and size it is; they cannot be hidden from the engine that runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cutlayer.obfuscation.layout import head_dim
from cutlayer.obfuscation.stop_ids import known_ids, read_generation

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from cutlayer.obfuscation.keys import OwnerKey
    from cutlayer.obfuscation.tau import Ids

_KEPT: Final = (
    "attention_bias", "attention_dropout", "attn_logit_softcapping", "decoder_sparse_step",
    "final_logit_softcapping", "hidden_act", "hidden_activation", "initializer_range", "intermediate_size", "layer_types",
    "max_position_embeddings", "max_window_layers", "mlp_bias", "mlp_only_layers", "model_type", "moe_intermediate_size",
    "norm_topk_prob", "num_attention_heads", "num_experts", "num_experts_per_tok", "num_hidden_layers",
    "num_key_value_heads", "num_local_experts", "query_pre_attn_scalar", "rope_parameters", "sliding_window",
    "use_bidirectional_attention", "use_sliding_window", "vocab_size",
)  # fmt: skip
_QWEN2_ONLY: Final = ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window")
_SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLING: Final = ("do_sample", "repetition_penalty", "temperature", "top_k", "top_p", "min_p")


def export_config(config: PreTrainedConfig, key: OwnerKey, tau: Ids, kappa: float) -> dict[str, Any]:
    """Content of ``config.json``.

    Args:
        config: of the base.
        key: of the export.
        tau: its permutation, [V].
        kappa: κ; ε follows by κ², since a mean square does.
    """
    held = config.to_dict()
    made = {name: held[name] for name in _KEPT if held.get(name) is not None}
    made["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    if config.model_type == "qwen2" and key.settings.hidden_size != config.hidden_size:
        # Engines derive qwen2's head size from the hidden size; llama takes it from the config, and biases too.
        made = {name: value for name, value in made.items() if name not in _QWEN2_ONLY}
        made |= {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": True,
            "mlp_bias": False,
        }
    made |= {
        "hidden_size": key.settings.hidden_size,
        "head_dim": head_dim(config),
        "dtype": key.settings.dtype,
        "tie_word_embeddings": False,
        "rms_norm_eps": config.rms_norm_eps * kappa**2,
        "use_cache": True,
    }
    return made | _moved({name: held.get(name) for name in _SPECIAL}, tau)


def export_generation_config(base: Path, config: PreTrainedConfig, tau: Ids) -> dict[str, Any]:
    """Content of ``generation_config.json``: how to sample, and the special ids as the server knows them.

    Raises:
        UnsupportedModelError: the base's is malformed.
    """
    held = read_generation(base)
    ids = {name: held.get(name, getattr(config, name, None)) for name in _SPECIAL}
    return {name: held[name] for name in _SAMPLING if held.get(name) is not None} | _moved(ids, tau)


def _moved(ids: dict[str, Any], tau: Ids) -> dict[str, Any]:
    """Special ids under τ; a list stays a list, and what names no token is null."""
    moved: dict[str, Any] = {}
    for name, value in ids.items():
        found = [int(tau[token]) for token in known_ids(value, len(tau))]
        moved[name] = found if isinstance(value, list) and found else next(iter(found), None)
    return moved
