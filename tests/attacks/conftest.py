"""What attacks on tiny models share: settings to attack, and a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.attacks.prior import Prior
from cutlayer.audit.scene import Scene
from cutlayer.models.parts import load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def scene(tiny: Callable[[str], Path]) -> Callable[..., Scene]:
    def make(family: str = "llama", cut: str = "2:-2", defence: str = "none", codec: str = "fp32") -> Scene:
        directory = tiny(family)
        span = Cut.parse(cut, 6)
        return Scene(directory, span, load_client(directory, span, torch.float32), defence, codec)

    return make


@pytest.fixture(scope="module")
def prior(tiny: Callable[[str], Path]) -> Prior:
    return Prior.load(tiny("llama"), dtype=torch.float32)
