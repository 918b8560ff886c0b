"""benchmarks/permuted.py in small: every part is measured, and a record that is there is gone on from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cutlayer.errors import InputError
from cutlayer.records.record import read_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("permuted")
    monkeypatch.setattr(module, "RECORDS", tmp_path)
    monkeypatch.setattr(importlib.import_module("report"), "RECORDS", tmp_path)
    return module


def test_the_benchmark_reads_every_part_and_goes_on_from_its_record(
    benchmark: ModuleType, tiny_with_text: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"model": str(tiny_with_text("llama")), "prompts": 2, "most": 2, "few": 1, "seeds": 1, "pairs": 128}
    benchmark.permuted(depths=(1,), parts=("both", "columns_search"), **small)
    first = read_record(tmp_path / "permuted.json")
    assert first.config["counts"] == {"k1_both": 2, "k1_columns_search": 1}
    capsys.readouterr()
    benchmark.permuted(depths=(1,), resume=True, **small)
    whole = read_record(tmp_path / "permuted.json")
    assert capsys.readouterr().err.count("k1_") == 2  # both parts that were missing
    assert set(whole.config["counts"]) == {f"k1_{part}" for part in benchmark.PARTS}
    assert all(whole.figures[f"k1_{part}_exact_match"].value == 1 for part in benchmark.PARTS)
    assert whole.figures["k1_both_exact_match"] == first.figures["k1_both_exact_match"]


def test_going_on_with_other_options_is_refused_and_loses_nothing(
    benchmark: ModuleType, tiny_with_text: Callable[[str], Path], tmp_path: Path
) -> None:
    small = {"model": str(tiny_with_text("llama")), "prompts": 2, "most": 1, "few": 1, "seeds": 1}
    benchmark.permuted(depths=(1,), parts=("both",), pairs=128, **small)
    before = (tmp_path / "permuted.json").read_bytes()
    with pytest.raises(InputError, match="measured with another pairs"):
        benchmark.permuted(depths=(1,), parts=("columns_search",), pairs=256, resume=True, **small)
    assert (tmp_path / "permuted.json").read_bytes() == before


def test_an_unknown_part_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(InputError, match="parts are both, columns"):
        benchmark.permuted(parts=("diagonal",))
