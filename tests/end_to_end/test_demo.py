"""`cutlayer demo` says what crossed, and what can be read off it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.model


def test_the_demo_attacks_itself(smollm2: Path, cutlayer: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = cutlayer("demo")
    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris" in done.stdout
    # "What is the capital of France?" has seven tokens in SmolLM2's vocabulary, and undefended all are read.
    assert "This server could read 7 of 7 tokens of your question (search attack, just now)." in done.stdout
    assert re.search(r"^(Measured: at k=2|Not measured)", done.stdout, re.MULTILINE)
    assert "never sent: the question" in done.stdout
