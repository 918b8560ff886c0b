"""`cutlayer audit` as its users meet it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli import app as command_line
from cutlayer.cli.app import app
from cutlayer.errors import InputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRIVATE = ("metformin", "Ada Ring", "350 euros")
PROMPTS = [
    {"id": "wine", "text": "Is metformin safe with wine?"},
    {"text": "My name is Ada Ring and I owe 350 euros.", "entities": ["Ada Ring"]},
]


def audit(*arguments: str) -> int:
    return app(["audit", *arguments], result_action="return_value")


@pytest.fixture(scope="module")
def options(tiny_with_text: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Model, prompts and the attacker's text."""
    directory = tmp_path_factory.mktemp("given")
    (directory / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    (directory / "owned.txt").write_text(
        "The quick brown fox jumps over the lazy dog, 0123456789. Is that MY name? " * 40
    )
    return [
        str(tiny_with_text("llama")),
        *(
            "--prompts",
            str(directory / "prompts.jsonl"),
            "--auxiliary",
            str(directory / "owned.txt"),
            "--pairs",
            "2560",
        ),
    ]


@pytest.fixture(scope="module")
def audited(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit."""
    out = tmp_path_factory.mktemp("audited")
    arguments = ["--attack", "nearest,search", "--defence", "none,gaussian:relative=0.5", "--out", str(out)]
    assert audit("run", *options, *arguments) == 0
    return out


def test_json_is_the_contract_and_nothing_else(
    options: list[str], audited: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--attack", "nearest,search", "--defence", "none", "--out", str(audited), "--json"]
    assert audit("run", *options, *arguments) == 0
    printed = capfd.readouterr()
    cells = json.loads(printed.out)["cells"]
    assert [(cell["cut"], cell["defence"], cell["attack"], cell["threat"]) for cell in cells] == [
        ("2:-2", "none", "nearest", "W2"),
        ("2:-2", "none", "search", "W2"),
    ]
    search = cells[1]
    assert search["figures"]["token_accuracy"] == 1.0
    assert search["figures"]["advantage"] == 1.0
    low, high = search["intervals"]["token_accuracy"]
    assert low <= 1.0 <= high
    assert search["n"] == 2
    assert printed.err.count("measured before") == 2


def test_no_prompt_appears_anywhere(audited: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    for arguments in (["report", str(audited), "--html", str(page)], ["report", str(audited), "--json"]):
        assert audit(*arguments) == 0
    audit("gate", str(audited), "--junit", str(tmp_path / "junit.xml"))
    audit("recommend", str(audited))
    audit("diff", str(audited), str(audited))
    printed = capfd.readouterr()
    files = [path.read_text() for path in (*audited.iterdir(), *tmp_path.iterdir())]
    for words in PRIVATE:
        assert not any(words in text for text in (*files, printed.out, printed.err))
    assert "wine" in page.read_text()  # the id


def test_texts_on_request(options: list[str], tmp_path: Path) -> None:
    arguments = ["--attack", "search", "--out", str(tmp_path / "kept"), "--keep-texts"]
    assert audit("run", *options, *arguments) == 0
    assert audit("report", str(tmp_path / "kept"), "--html", str(tmp_path / "page.html")) == 0
    assert "metformin" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.html").stat().st_mode & 0o077 == 0


def test_report(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("report", str(audited)) == 0
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    assert "No measured setting meets the bar." in text
    assert "The server reads 100 %" in text
    assert "cut 2:-2, gaussian:relative=0.5" in text
    assert max(map(len, shown.splitlines())) <= 80
    assert audit("report", str(audited), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["verdict"][0] == "No measured setting meets the bar."
    assert [setting["meets_bar"] for setting in made["settings"]] == [False, False]
    assert len(made["cells"]) == 4


def test_gate_exit_codes(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit = tmp_path / "junit.xml"
    assert audit("gate", str(audited), "--junit", str(junit)) == 1
    assert "allowed 0.25" in capsys.readouterr().out
    root = ElementTree.parse(junit).getroot()  # noqa: S314 - our own
    assert int(root.get("failures", "0")) >= 2
    assert len(root.findall(".//testcase")) == 4
    assert audit("gate", str(audited), "--max-advantage", "1") == 0
    assert "passed" in capsys.readouterr().out
    with pytest.raises(InputError, match="--max-advantage is 25"):
        audit("gate", str(audited), "--max-advantage", "25")


def test_gate_notices_a_missing_cell(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    files = sorted(audited.iterdir())
    for path in files:
        (copy / path.name).write_bytes(path.read_bytes())
    next(copy.glob("audit-*nearest*.json")).unlink()
    assert audit("gate", str(copy), "--max-advantage", "1") == 1
    assert "has no record" in " ".join(capsys.readouterr().out.split())


def test_diff(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("diff", str(audited), str(audited), "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 4
    assert all(cell["paired"] and cell["token_accuracy"]["value"] == 0 and not cell["clear"] for cell in cells)
    assert audit("diff", str(audited), str(audited)) == 0
    assert "4 cells in both, 0 changed" in capsys.readouterr().out


def test_recommend_says_so_when_nothing_will_do(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("recommend", str(audited)) == 0
    assert "No measured setting meets the bar" in " ".join(capsys.readouterr().out.split())
    assert audit("recommend", str(audited), "--json") == 0
    assert json.loads(capsys.readouterr().out)["chosen"] is None


def test_a_failed_cell_is_exit_code_1(options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--attack",
        "nearest",
        "--defence",
        "none,gaussian:relative=0.5,clip=-1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert audit("run", *options, *arguments) == 1
    cells = json.loads(capfd.readouterr().out)["cells"]
    assert [cell["status"] for cell in cells] == ["complete", "error"]
    assert "clip" in cells[1]["reason"]
    assert cells[1]["figures"] == {}


def test_interruption_is_exit_code_130(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from cutlayer.audit import run

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_jobs", interrupt)
    words = ["audit", "run", *options, "--attack", "nearest", "--out", str(tmp_path)]
    monkeypatch.setattr(command_line, "app", lambda result_action: app(words, result_action=result_action))
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 130
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "goes on from there" in " ".join(printed.err.split())


@pytest.mark.parametrize("verb", ["report", "gate", "recommend"])
def test_strange_directories(verb: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no directory"):
        audit(verb, str(tmp_path / "none"))
    (tmp_path / "audit-x.json").write_text("{")
    with pytest.raises(StoreError, match="is no record"):
        audit(verb, str(tmp_path))
