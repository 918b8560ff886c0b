"""GGUF for llama.cpp, from a finished export. No key is involved: it holds what the export holds, under that format's names.

The format's own converter insists on a tokenizer it knows, and an export has none. So the file is written with the `gguf`
library, one tensor at a time, with a vocabulary of opaque names.

Notation: V vocabulary, c dimension of a head, H heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cutlayer.errors import InputError, StoreError, UnsupportedModelError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.family import read_config
from cutlayer.obfuscation.dummy_tokenizer import token_name
from cutlayer.obfuscation.frequency_pairs import default_frequencies, frequencies
from cutlayer.obfuscation.layout import head_dim
from cutlayer.obfuscation.marker import read_marker
from cutlayer.obfuscation.stop_ids import stop_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig

# model type → architecture in GGUF
_ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_INTERLEAVED: Final = "llama"
"""The architecture whose rotary pairs lie side by side in GGUF."""
_SUFFIXES: Final = (".weight", ".bias")


def export_gguf(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the export in `source` as one GGUF file, in the export's dtype.

    Args:
        source: made by `cutlayer.obfuscation.export.export`.
        target: file to appear.
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: `target` exists, or the library is not installed.
        UnsupportedModelError: the model's architecture or positions have no equal in GGUF that was verified.
        ModelNotFoundError, IntegrityError, WeightsError: `source` is no whole export.
        StoreError: the file cannot be written.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise InputError("GGUF files need the gguf library; pip install 'cutlayer[client]'") from error
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists and is never overwritten; choose another file or remove it yourself")
    read_marker(source)
    config = read_config(source)
    architecture = gguf_architecture(config)
    checkpoint = Checkpoint(source)
    partial = target.with_name(f".{target.name}.partial")
    names = gguf.get_tensor_name_map(_number(gguf, architecture), config.num_hidden_layers)
    headers = checkpoint.headers()
    report = progress or (lambda done, total: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(partial, architecture)
        _describe(gguf, writer, source, config)
        factors = _frequency_factors(config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name, header in headers.items():
            kind = gguf.GGMLQuantizationType[header.dtype if len(header.shape) > 1 else "F32"]
            shape = gguf.quant_shape_to_byte_shape(header.shape, kind)
            writer.add_tensor_info(_name(names, name), shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, tensor in enumerate(_tensors(checkpoint, config, architecture), 1):
            flat = tensor if tensor.dim() > 1 else tensor.float()
            writer.write_tensor_data(flat.contiguous().view(torch.uint8).numpy())
            report(done, len(headers))
        writer.close()
        partial.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}; free some space and try again") from error
    finally:
        partial.unlink(missing_ok=True)


def gguf_architecture(config: PreTrainedConfig) -> str:
    """Architecture by which llama.cpp runs such a model, base or export.

    Raises:
        UnsupportedModelError: with the reason.
    """
    found = _ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UnsupportedModelError(
            f"no GGUF of model type {config.model_type!r}: its graph has not been verified with a separate output head; "
            f"verified: {', '.join(_ARCHITECTURES)}. Serve the safetensors export instead"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise UnsupportedModelError(
            f"no GGUF of this model: it attends over a window of {window} positions, which llama.cpp's {found} graph does not; "
            "serve the safetensors export instead"
        )
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "llama3", "linear"):
        raise UnsupportedModelError(f"no GGUF of this model: its rotary scaling {kind!r} has not been verified there")
    return found


def _describe(gguf: Any, writer: Any, source: Path, config: PreTrainedConfig) -> None:
    """Everything but the tensors."""
    c = head_dim(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(c)
    writer.add_value_length(c)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(c)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_vocab_size(config.vocab_size)
    ends = stop_ids(source, config)
    control = {*ends, config.bos_token_id, config.pad_token_id}
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token_name(token) for token in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    kinds = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([int(kinds[token in control]) for token in range(config.vocab_size)])
    # The engine stops at two ids at most; the client watches for the others.
    for add, token in zip((writer.add_eos_token_id, writer.add_eot_token_id), ends, strict=False):
        add(token)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    # The client's prompts are complete.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _tensors(checkpoint: Checkpoint, config: PreTrainedConfig, architecture: str) -> Iterator[torch.Tensor]:
    """In the order of the headers."""
    for name in checkpoint.headers():
        tensor = checkpoint.read(name)
        if architecture == _INTERLEAVED and ".q_proj." in name:
            tensor = _interleaved(tensor, config.num_attention_heads)
        elif architecture == _INTERLEAVED and ".k_proj." in name:
            tensor = _interleaved(tensor, config.num_key_value_heads)
        yield tensor


def _interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels j and j + c/2 of each head side by side, [H·c, …]."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _frequency_factors(config: PreTrainedConfig) -> Any:
    """By what each pair's default frequency is divided, float32 [c/2]; None where it is not."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    c = head_dim(config)
    plain = default_frequencies(float(config.rope_parameters["rope_theta"]), c)
    return (plain / frequencies(config, c)).float().numpy()


def _name(names: Any, name: str) -> str:
    found = names.get_name(name, try_suffixes=_SUFFIXES)
    if found is None:
        raise UnsupportedModelError(f"GGUF has no name for {name}")
    return str(found)


def _number(gguf: Any, architecture: str) -> Any:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
