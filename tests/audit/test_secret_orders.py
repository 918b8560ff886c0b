"""An audit of positions in a secret order: read by the attack that finds them, and never called safe by the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.report.settings import settings_of
from cutlayer.audit.request import Request
from cutlayer.audit.run import run_audit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_rows_out_of_order_are_read_and_attacks_that_need_order_say_so(
    tiny_with_text: Callable[[str], Path], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "Is metformin safe with wine?"}\n{"text": "What is the capital of France?"}\n')
    request = Request(
        model=str(tiny_with_text("llama")),
        defences=("permute:axis=both",),
        attacks=("search", "vma"),
        threats=("W2:auxiliary=false",),
        prompts=prompts,
        out=tmp_path / "audit",
    )
    search, vma = run_audit(request)
    assert search.config.status == "error"
    assert "search takes rows in order" in str(search.config.reason)
    assert vma.figures["exact_match"].value == 1
    assert vma.figures["token_accuracy"].value == 1
    (setting,) = settings_of([search, vma])
    assert setting.adapted
    assert setting.worst is not None
    assert setting.worst.cell.attack == "vma"
