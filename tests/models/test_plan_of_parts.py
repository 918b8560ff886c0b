"""What the plan predicts against what loaded parts of every family take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import KV_POSITIONS
from cutlayer.models.family import read_config
from cutlayer.models.parameters import count_parameters
from cutlayer.models.parts import Part, load_body, load_client
from cutlayer.models.plan import make_plan
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAMILIES = [
    "llama", "llama-tied", "llama-bias", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "phi3", "olmo2", "gpt_neox", "mixtral", "qwen3_moe", "smollm3", "cohere", "starcoder2",
]  # fmt: skip


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Path:
    return tiny(request.param)


@pytest.mark.parametrize(
    ("bounds", "dtype"), [("0:6", torch.float32), ("2:-2", torch.bfloat16), ("1:-3", torch.float32)]
)
def test_predicted_bytes_are_those_of_loaded_parts(saved: Path, bounds: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    parameters = count_parameters(read_config(saved))
    cut = Cut.parse(bounds, 6)
    planned = next(c for c in make_plan("m", parameters, Conditions(dtype=name), (bounds,)).cuts if c.cut == str(cut))
    body = load_body(saved, cut, dtype)
    head, tail = load_client(saved, cut, dtype)

    assert getattr(planned.server.weights, name) == body.weight_bytes() - _buffer_bytes(body)
    shared = head.embedding().nbytes if parameters.tied else 0  # both parts count the one matrix
    held = sum(part.weight_bytes() - _buffer_bytes(part) for part in (head, tail)) - shared
    assert getattr(planned.client.weights, name) == held


def _buffer_bytes(part: Part) -> int:
    """Rotary frequencies and the like, which the plan leaves out."""
    return sum(buffer.nbytes for buffer in part.shell.buffers())


def test_predicted_cache_is_that_of_loaded_parts(saved: Path) -> None:
    cut = Cut.parse("1:-2", 6)
    plan = make_plan("m", count_parameters(read_config(saved)), Conditions(dtype="float32"), ("1:-2",))
    planned = next(c for c in plan.cuts if c.cut == str(cut))
    head, tail = load_client(saved, cut, torch.float32)
    body = load_body(saved, cut, torch.float32)
    caches = [part.new_cache() for part in (head, body, tail)]
    positions = 128  # the first capacity, so nothing is allocated in reserve
    with torch.inference_mode():
        hidden = head(torch.ones(1, positions, dtype=torch.long), caches[0])  # [1, T, D]
        tail(body(hidden, caches[1]), caches[2], keep=1)
    held = [cache.nbytes() * KV_POSITIONS // positions for cache in caches]
    assert planned.client.kv_bytes == held[0] + held[2]
    assert planned.server.kv_bytes == held[1]
