"""Several sources in one tree: slow ones are asked where the others see no way far ahead, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.client.speculation.head.file import find_head, save_head
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.client.speculation.mixed import Mixed
from cutlayer.client.speculation.source import Weighed
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.errors import WeightsError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cutlayer.client.trusted import Trusted

CUT = Cut(2, 4, 6)


class Counting:
    """Says that every token is followed by the next number, with one chance."""

    def __init__(self, chance: float, step: int = 1) -> None:
        self.chance = chance
        self.step = step
        self.followed: list[list[int]] = []
        self.learned = 0

    def follow(self, ids: Sequence[int]) -> None:
        self.followed.append(list(ids))

    def propose(self, context: tuple[int, ...]) -> Mapping[int, float]:
        return {context[-1] + self.step: self.chance} if self.followed else {}

    def learn(self, seen: Any, contexts: Any) -> None:
        self.learned += 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("chance", "asked"), [(0.99, 0), (0.3, 1)])
def test_slow_sources_are_asked_where_the_others_are_not_sure(chance: float, asked: int) -> None:
    quick, slow = Counting(chance), Counting(0.5, step=50)
    mixed = Mixed([Weighed(quick, 1.0, 0.0)], -2.0, slow=[Weighed(slow, 1.0, 0.0)])
    draft = mixed.draft([3, 4], 20)
    assert len(quick.followed) == 1
    assert len(slow.followed) == asked
    assert (4 + 50 in draft.tokens) == bool(asked)


@pytest.fixture
def real(tiny: Callable[[str], Path]) -> Any:
    """As much of a `Trusted` as a head needs."""
    parts = load_client(tiny("llama"), CUT, torch.float32)

    class Some:
        info = type("Info", (), {"fingerprint": "f" * 32})
        cut = CUT
        dtype = "float32"
        turn = None

    some: Any = Some()
    some.parts = parts
    return some


def test_the_default_takes_the_head_of_model_and_cut(real: Trusted, home: Path) -> None:
    assert find_head(real) is None
    build_speculator("auto", real)
    file = home / "heads" / f"{'f' * 32}-2-4.safetensors"
    file.parent.mkdir()
    save_head(DraftHead(real.parts, torch.arange(50), rank=4), real, {}, file)
    assert find_head(real) == file
    one, other = (build_speculator(f"head:path={file}", real) for _ in range(2))
    assert vars(one)["_head"] is vars(other)["_head"], "sessions of one client share it"
    build_speculator("auto", real)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=file.name):
        build_speculator("auto", real)
    build_speculator("auto:head=none", real)
