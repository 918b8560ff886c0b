"""Weights kept in 8 bits: less memory, nearly the same outputs, through the same ragged batches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.errors import InputError
from cutlayer.models.pages import PAGE, PagePool, PageTable
from cutlayer.models.parts import load_body
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.models.weights import check_weights, keep_weights, stored_bytes
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.models.weights import WeightsName

CUT = Cut(1, 5, 6)
HIDDEN = 32
TOLERANCE = 0.1


@torch.inference_mode()
def outputs(directory: Path, weights: WeightsName, dtype: torch.dtype) -> tuple[list[torch.Tensor], int]:
    """Hidden states after a prefill and a step of two sessions, and the bytes of the weights."""
    body = load_body(directory, CUT, dtype)
    keep_weights(body, weights)
    size = stored_bytes(body)
    assert next(body.parameters()).dtype is dtype  # the engine goes by it
    pool = PagePool(CUT.body_layers, 8 * PAGE)
    ragged = RaggedBody(body, pool)
    tables = [PageTable(pool, "somebody", 2 * PAGE) for _ in range(2)]
    made = torch.Generator().manual_seed(5)
    found: list[torch.Tensor] = []
    for rows in ((20, 7), (1, 1)):
        chunks = [Chunk(t, torch.randn(n, HIDDEN, generator=made).to(dtype)) for t, n in zip(tables, rows, strict=True)]
        found += ragged(chunks)
    return found, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt_neox"])
def test_int8_is_smaller_and_nearly_the_same(family: str, dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    pytest.importorskip("torchao")
    directory = tiny(family)
    plain, plain_bytes = outputs(directory, "dtype", dtype)
    int8, int8_bytes = outputs(directory, "int8", dtype)
    assert int8_bytes < (0.4 if dtype is torch.float32 else 0.7) * plain_bytes
    for one, other in zip(plain, int8, strict=True):
        assert one.dtype is other.dtype
        error = float((other.float() - one.float()).norm() / one.float().norm())
        assert 0 < error < TOLERANCE


def test_dtype_leaves_the_weights_alone(tiny: Callable[[str], Path]) -> None:
    body = load_body(tiny("llama"), CUT, torch.float32)
    keep_weights(body, "dtype")
    assert stored_bytes(body) == body.weight_bytes()


def test_unknown_weights_are_refused() -> None:
    assert check_weights("int8") == "int8"
    with pytest.raises(InputError, match="unknown weights 'int4'; available: dtype, int8"):
        check_weights("int4")


def test_a_missing_library_is_named(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'cutlayer\[int8\]'"):
        keep_weights(load_body(tiny("llama"), CUT, torch.float32), "int8")
