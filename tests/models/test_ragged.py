"""Chunks of many sessions in one forward give what each session gives alone, for every family."""

from __future__ import annotations

import random
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


class Guesses:
    """One session with branches, and what each row follows by the test's own account."""

    def __init__(self, pool: PagePool, seed: int) -> None:
        self.table = PageTable(pool, "somebody")
        self.chance = random.Random(seed)
        self.rows = torch.empty(0, HIDDEN)
        self.parents: list[int] = []

    def path(self, slot: int) -> list[int]:
        """The slots up to `slot`."""
        return [*(self.path(self.parents[slot]) if self.parents[slot] >= 0 else ()), slot]

    def grow(self, count: int, branched: bool) -> Chunk:
        """The next chunk."""
        base = len(self.rows)
        backs = [min(slot, self.chance.choice([1, 1, 1, 1, 2, 3, 7])) for slot in range(base, base + count)]
        if not branched:
            backs = [1] * count
        self.parents += [base + row - back for row, back in enumerate(backs)]
        self.rows = torch.cat([self.rows, states(count, self.chance.randrange(1 << 30))])
        self.table.grow(base + count)
        return Chunk(self.table, self.rows[base:], backs if branched else ())

    def keep(self) -> int:
        """Keep the path to one of the last slots and forget the others; how many slots move."""
        path = self.path(len(self.rows) - 1 - self.chance.randrange(4))
        moved = sum(slot != position for position, slot in enumerate(path))
        anchor = len(path) - moved - self.chance.randrange(3)
        self.table.keep(anchor, [slot - anchor for slot in path[anchor:]])
        self.rows = self.rows[path]
        self.parents = list(range(-1, len(path) - 1))
        return moved


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_branches_of_many_sessions_equal_each_path_alone(family: str, tiny: Callable[[str], Path]) -> None:
    """Trees deeper than the windows, chunk after chunk beside chains and single rows; then a path of each is kept."""
    directory = tiny(family)
    alone = Alone(directory)
    pool = PagePool(CUT.body_layers, 64 * PAGE)
    body = RaggedBody(load_body(directory, CUT, torch.float32), pool)
    one, two, three = (Guesses(pool, seed) for seed in range(3))

    def run(*chunks: tuple[Guesses, int, bool]) -> None:
        outputs = body([guesses.grow(count, branched) for guesses, count, branched in chunks])
        for (guesses, count, _), output in zip(chunks, outputs, strict=True):
            for row, slot in zip(output, range(len(guesses.rows) - count, len(guesses.rows)), strict=True):
                assert (row - alone.run(guesses.rows[guesses.path(slot)])[-1]).abs().max() < TOLERANCE

    run((one, PAGE - 5, False), (two, 9, False), (three, 1, False))
    for _ in range(2):
        run((one, 17, True), (two, 12, True), (three, 1, False))
        run((one, 1, False), (three, 5, False))
        run((one, 6, True), (two, 1, True), (three, 1, False))
        assert one.keep() + two.keep() > 5
        run((one, 4, False), (two, 1, False), (three, 3, False))
