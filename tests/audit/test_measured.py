"""What is said about a setting comes from records, and says so when there are none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutlayer.audit.measured import Measured, statement, table
from cutlayer.errors import StoreError
from cutlayer.records.record import new_record, write_record
from cutlayer.types import Cut

SCRIPT = Path(__file__).parents[2] / "scripts" / "measured.py"


def entry(**changes: Any) -> Measured:
    usual: dict[str, Any] = {
        "model": "SmolLM2-135M",
        "cut_start": 2,
        "defence": "none",
        "attack": "search",
        "token_accuracy": 1.0,
        "low": 0.9991,
        "high": 1.0,
        "n": 100,
        "record": "search",
    }
    return Measured(**{**usual, **changes})


def said(entries: list[Measured], k: int = 2, defence: str = "none", model: str = "smollm2-135m") -> str:
    return statement(model, Cut(k, 28, 30), defence, entries)


def test_the_very_setting() -> None:
    assert said([entry(), entry(cut_start=4, token_accuracy=0.5)]) == (
        "Measured: at k=2 undefended, a server reads 100 % (99.9–100 %) of prompt tokens (search, 100 prompts, SmolLM2-135M)."
    )


def test_the_strongest_attack_speaks() -> None:
    weak = entry(attack="ridge", token_accuracy=0.7)
    assert "(search, " in said([weak, entry(), weak])


def test_nothing_short_of_everything_is_called_100_percent() -> None:
    words = said([entry(token_accuracy=0.99996, low=0.99991, high=0.99999)])
    assert "99.9 % (99.9–100 %)" in words


def test_another_depth_of_the_same_model_is_worded_as_such() -> None:
    words = said([entry(cut_start=2), entry(cut_start=8, token_accuracy=0.625, low=0.6, high=0.65)], k=7)
    assert words.startswith("Not measured at k=7. Nearest measured: at k=8 undefended, a server reads 62.5 % (60–65 %)")


def test_at_equal_distance_the_worse_news_is_told() -> None:
    assert "at k=4" in said([entry(cut_start=4), entry(cut_start=8, token_accuracy=0.6)], k=6)
    assert "at k=8" in said([entry(cut_start=4, token_accuracy=0.6), entry(cut_start=8)], k=6)


@pytest.mark.parametrize(("model", "defence"), [("other", "none"), ("smollm2-135m", "gaussian:sigma=0.1")])
def test_another_model_or_defence_is_not_measured(model: str, defence: str) -> None:
    words = said([entry(), entry(cut_start=8)], defence=defence, model=model)
    assert words == (
        f"Not measured for this setting: run `cutlayer audit run {model} --cut 2:28 --defence {defence}`; undefended hidden "
        "states of models with public weights were fully readable at every cut measured (k = 2, 8)."
    )


def test_not_fully_readable_is_not_said_to_be() -> None:
    entries = [
        entry(),
        entry(cut_start=20, token_accuracy=0.9817),
        entry(cut_start=20, attack="ridge", token_accuracy=0.2),
    ]
    assert "to at least 98.1 % of tokens readable at every cut measured (k = 2, 20)" in said(entries, model="other")


def test_a_defence_is_recognised_however_its_numbers_are_written() -> None:
    entries = [entry(defence="gaussian:epsilon=8,delta=1e-06,clip=40", token_accuracy=0.25, low=0.2, high=0.3)]
    words = said(entries, defence="gaussian:clip=40.0,delta=0.000001,epsilon=8")
    assert words.startswith(
        "Measured: at k=2 under gaussian:epsilon=8,delta=1e-06,clip=40, a server reads 25 % (20–30 %)"
    )
    assert said(entries, defence="gaussian:clip=41,delta=0.000001,epsilon=8").startswith("Not measured")


def test_an_empty_table_says_nothing_was_measured() -> None:
    assert said([]) == (
        "Not measured for this setting: run `cutlayer audit run smollm2-135m --cut 2:28 --defence none`; no other setting has "
        "been measured either."
    )


def test_the_packaged_table_is_what_the_committed_records_say() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(item.low <= item.token_accuracy <= item.high for item in table())


def script() -> Any:
    spec = importlib.util.spec_from_file_location("measured_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(directory: Path, name: str, measured: Any) -> None:
    write_record(new_record(name, "command", {"measured": measured}, {}, {}), directory)


def test_entries_are_collected_from_records(tmp_path: Path) -> None:
    given = [msgspec.to_builtins(entry(cut_start=k)) for k in (8, 2)]
    for item in given:
        del item["record"]
    recorded(tmp_path, "frontier", given)
    write_record(new_record("overhead", "command", {}, {}, {}), tmp_path)
    module = script()
    assert module.collect(tmp_path) == [entry(cut_start=k, record="frontier") for k in (2, 8)]
    assert json.loads(module.render(module.collect(tmp_path)))[0]["record"] == "frontier"


@pytest.mark.parametrize(
    "wrong", [[{"model": "x"}], [1], [{**msgspec.to_builtins(entry()), "token_accuracy": 2}]], ids=str
)
def test_a_malformed_entry_names_its_record(tmp_path: Path, wrong: Any) -> None:
    recorded(tmp_path, "frontier", wrong)
    with pytest.raises(StoreError, match="frontier"):
        script().collect(tmp_path)
