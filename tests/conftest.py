"""Fixtures shared by all tests: tiny random models of every family, and the real one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: tests share their cores, and a slow moment is no bug.
settings.register_profile("cutlayer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cutlayer")

# Before torch is imported anywhere. Two workers with a thread per core each would wait for one another at every
# barrier: on two cores the founding test takes three times as long, and what a test starts inherits the setting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"

VOCABULARY = 101
LAYERS = 6
WINDOW = 8
"""Sliding windows are much shorter than the test sequences, so that they matter."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope3": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 3}),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
        },
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "cohere": ("CohereConfig", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": WINDOW}),
}


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file."""

    id: str
    text: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name → directory of a tiny random checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            import torch
            import transformers

            transformers.utils.logging.disable_progress_bar()
            name, settings = FAMILIES[family]
            torch.manual_seed(hash_of(family))
            config = getattr(transformers, name)(**{**_COMMON, **settings})
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                # Far from the usual small initialisation: attention and experts must make a difference.
                parameter.data.normal_(0, 0.3)
            made[family] = tmp_path_factory.mktemp("models") / family
            model.save_pretrained(made[family])
        return made[family]

    return make


SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_with_text(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """As `tiny`, with a tokenizer of one token per printable ASCII character and a chat template."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models_with_text") / family
            shutil.copytree(tiny(family), made[family])
            save_tokenizer(made[family])
        return made[family]

    return make


def save_tokenizer(directory: Path) -> None:
    """Six special tokens and the 95 characters from blank to tilde: `VOCABULARY` ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *map(chr, range(32, 127))))}
    assert len(vocabulary) == VOCABULARY
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, additional_special_tokens=["<user>", "<assistant>"], **names
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)


def hash_of(text: str) -> int:
    """A seed that does not change between runs, unlike `hash`."""
    return int.from_bytes(text.encode()[:7], "little")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of the real model, pulled and converted on first use."""
    from cutlayer.store.pull import pull

    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Our own twenty prompts."""
    return [Prompt(**json.loads(line)) for line in (DATA / "prompts.jsonl").read_text().splitlines()]
