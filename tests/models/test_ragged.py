"""Chunks of many sessions in one forward give what each session gives alone, for every family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tests.conftest import FAMILIES

from cutlayer.models.pages import PAGE, PagePool, PageTable
from cutlayer.models.parts import load_body
from cutlayer.models.ragged import Chunk, RaggedBody
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOLERANCE = 1e-4
CUT = Cut(1, 5, 6)
HIDDEN = 32


def states(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


class Alone:
    """One session on a body of its own, the way transformers runs it."""

    def __init__(self, directory: Path) -> None:
        self._body = load_body(directory, CUT, torch.float32)

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._body(hidden[None], self._body.new_cache())[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_ragged_batches_equal_sessions_alone(family: str, tiny: Callable[[str], Path]) -> None:
    directory = tiny(family)
    alone = Alone(directory)
    pool = PagePool(CUT.body_layers, 64 * PAGE)
    body = RaggedBody(load_body(directory, CUT, torch.float32), pool)
    lengths = [3 * PAGE + 5, 41, 12, 1]
    inputs = [states(length, seed) for seed, length in enumerate(lengths)]
    tables = [PageTable(pool, "somebody") for _ in inputs]
    outputs: list[list[torch.Tensor]] = [[] for _ in inputs]
    plan = torch.Generator().manual_seed(7)
    while any(table.position < length for table, length in zip(tables, lengths, strict=True)):
        chunks, owners = [], []
        for i, (table, length) in enumerate(zip(tables, lengths, strict=True)):
            step = int(torch.randint(0, 24, (), generator=plan)) if table.position % 3 else 1
            part = inputs[i][table.position : min(table.position + step, length)]
            if len(part):
                table.grow(table.position + len(part))
                chunks.append(Chunk(table, part))
                owners.append(i)
        if chunks:
            for i, output in zip(owners, body(chunks), strict=True):
                outputs[i].append(output)
    for own, parts in zip(inputs, outputs, strict=True):
        assert (torch.cat(parts) - alone.run(own)).abs().max() < TOLERANCE
