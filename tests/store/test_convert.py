"""What a conversion writes: transformers loads it, values and vocabulary are those of the GGUF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutlayer.models.checkpoint import Checkpoint
from cutlayer.store.convert import convert

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def converted(entry, home: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    target = home / "models" / "tiny"
    convert("tiny", entry.gguf, entry.source, target)
    assert capfd.readouterr() == ("", "")  # no progress bars but ours
    return target


def test_transformers_loads_it_whole(converted: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 16)
    assert model.generation_config.eos_token_id == 2


def test_values_are_those_of_the_gguf(converted: Path, entry) -> None:
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(entry.gguf).tensors}
    checkpoint = Checkpoint(converted)
    for here, there in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        assert torch.equal(checkpoint.read(here), torch.from_numpy(tensors[there].copy()))


def test_config_holds_no_leftovers(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert not [key for key in config if key.startswith("_")]
    assert json.loads((converted / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    tokenizer = json.loads((converted / "tokenizer_config.json").read_text())
    assert "is_local" not in tokenizer
    assert tokenizer["model_max_length"] == 64


def test_tokenizer_survives(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer("the<|im_end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["th", "e", "<|im_end|>"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert text == "<|im_start|>he<|im_end|>"


@pytest.mark.model
def test_the_real_model_answers(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
