"""Models of other families than the one whose weights are at hand: its weights in another architecture, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
from transformers.utils import logging

from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.family import read_config


def as_qwen2(base: Path, target: Path, bias: float = 0.1, seed: int = 0) -> Path:
    """A llama's weights in a qwen2, with random biases on queries, keys and values, which a llama does not have.

    Args:
        base: a llama without biases.
        target: directory to write.
        bias: standard deviation of the biases.
        seed: of the biases.
    """
    llama = read_config(base)
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    )  # fmt: skip
    config = Qwen2Config(**{name: getattr(llama, name) for name in kept}, architectures=["Qwen2ForCausalLM"])
    drawn = torch.Generator().manual_seed(seed)
    held = Checkpoint(base)
    tensors = {name: held.read(name) for name in held.names()}
    for name in held.names():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            shape = (len(tensors[name]),)
            tensors[name.replace("weight", "bias")] = bias * torch.randn(shape, generator=drawn)
    target.mkdir(parents=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return target


def random_model(target: Path, kind: str = "qwen3", seed: int = 0) -> Path:
    """Gaussian weights: eight layers of width 256 and a vocabulary of 8192."""
    config = AutoConfig.for_model(
        kind, vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    logging.disable_progress_bar()
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    return target
