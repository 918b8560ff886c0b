"""Tiny bases, their exports, and the comparison of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXPERTS: dict[str, dict[str, int]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
SEED = Secret(bytes(range(32)))


@dataclass(frozen=True)
class Exported:
    """An export with everything that made it."""

    base: Path
    directory: Path
    key: OwnerKey

    @property
    def tau(self) -> torch.Tensor:
        """τ, int64, [V]."""
        return torch.from_numpy(self.key.tau().astype("int64"))

    def models(self) -> tuple[Any, Any]:
        """The plain and the obfuscated model."""
        return load(self.base), load(self.directory)


@cache
def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Exported]:
    """(base, settings of `choose`) → a fresh export with a fixed seed."""

    def make(base: Path, seed: Secret = SEED, name: str = "export", **settings: Any) -> Exported:
        key = create_owner_key(base, choose(base, **settings), seed)
        export(base, tmp_path / name, key)
        return Exported(base, tmp_path / name, key)

    return make


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """(model type, query heads per key-value head) → directory of a tiny random model, made once."""
    made: dict[tuple[str, int], Path] = {}
    heads = {1: (4, 4), 3: (6, 2), 7: (7, 1)}

    def make(kind: str, ratio: int) -> Path:
        if (kind, ratio) not in made:
            query, kv = heads[ratio]
            settings: dict[str, Any] = {
                "vocab_size": 101, "hidden_size": 8 * query, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": query, "num_key_value_heads": kv, "head_dim": 8, "max_position_embeddings": 256,
                "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            }  # fmt: skip
            settings |= EXPERTS.get(kind, {})
            torch.manual_seed(ratio)
            model = AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))
            for parameter in model.parameters():
                parameter.data.normal_(0, 0.3)
            made[kind, ratio] = tmp_path_factory.mktemp("grouped") / f"{kind}-{ratio}"
            model.save_pretrained(made[kind, ratio])
        return made[kind, ratio]

    return make
