"""`cutlayer plan` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.app import app
from cutlayer.errors import CutError, InputError, ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIGS = Path(__file__).parent.parent / "models" / "configs"
NEMO = str(CONFIGS / "mistral-nemo-2407.json")


def _run(*arguments: str) -> int:
    return app(["plan", *arguments], result_action="return_value")


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(NEMO) == 0
    shown = capsys.readouterr().out
    text = " ".join(shown.split())  # lines are folded at the width of the terminal
    assert "12,247.782 M parameters" in text
    assert "2:38 2 2 9.73 4.87 2.43 0.99 + 1.34" in text
    assert "bf16 10,262 / 10,256" in text
    assert "Recommended: --cut 2:38" in text
    assert "no proof of privacy" in text
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_memory_bound(capsys: pytest.CaptureFixture[str]) -> None:
    _run(NEMO, "--client-memory", "8")
    assert "Recommended: --cut 4:36" in capsys.readouterr().out
    _run(NEMO, "--client-memory", "4")
    assert "Recommended: no cut (none meets the bound" in " ".join(capsys.readouterr().out.split())


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cut", "3:-1", "--rtt", "40", "--client-ms", "5", "--server-ms", "5", "--bandwidth", "1000"]
    assert _run(NEMO, "--json", *arguments) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["recommended"] == "2:38"
    assert [cut["cut"] for cut in made["cuts"]] == ["0:40", "1:39", "2:38", "4:36", "8:32", "16:24", "3:39"]
    assert made["cuts"][2]["tokens_per_s"]["bf16"] == pytest.approx(1000 / (50 + (10_262 + 10_256) * 8 / 1e6))
    assert sum(made["parameters"]["layers"]) + 2 * 671_088_640 + 5120 == 12_247_782_400


def test_directory(tiny: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(tiny("llama-tied")), "--dtype", "float32") == 0
    assert "the embedding again (tied)" in " ".join(capsys.readouterr().out.split())


def test_wrong_values(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model"):
        _run(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="unknown dtype 'int4'"):
        _run(NEMO, "--dtype", "int4")
    with pytest.raises(InputError, match="rtt_ms is -1"):
        _run(NEMO, "--rtt=-1")
    with pytest.raises(CutError, match="outside a model of 40 layers"):
        _run(NEMO, "--cut", "2:41")
    for content in ("{}", "[]", "no json", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UnsupportedModelError):
            _run(str(tmp_path / "config.json"))
