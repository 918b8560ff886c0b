"""Reports as pure functions of records: words, page, comparison, gate and choice. The records here are made up."""

from __future__ import annotations

import html.parser
import math
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cutlayer.audit.cell_record import PREFIX, CellConfig, CellRecord, ClientCost, Prompts
from cutlayer.audit.difference import compare
from cutlayer.audit.gate import judge, junit
from cutlayer.audit.grid import Cell
from cutlayer.audit.recommendation import recommend
from cutlayer.audit.report.file import write_page
from cutlayer.audit.report.page import render_page
from cutlayer.audit.report.settings import Bar, settings_of
from cutlayer.audit.report.words import percent, verdict
from cutlayer.audit.shelf import MAX_RECORD_BYTES, Plan, Shelf
from cutlayer.errors import StoreError
from cutlayer.records.record import Figure, exact, new_record
from cutlayer.types import Cut

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>$\\frac{1}{2}$&amp;\"'"


def made(
    attack: str = "search",
    defence: str = "none",
    k: int = 2,
    *,
    read: tuple[float, ...] = (1.0, 0.9, 0.95),
    tokens: tuple[int, ...] = (10, 20, 20),
    ids: tuple[str, ...] = ("a", "b", "c"),
    status: str = "complete",
    **figures: float,
) -> CellRecord:
    """The record of a cell; the baseline reads nothing."""
    cell = Cell(cut=f"{k}:-{k}", span=Cut(k, 30 - k, 30), defence=defence, attack=attack, threat="W2")
    config = CellConfig(
        cell=cell,
        status=status,
        reason=None if status == "complete" else "because",
        model="smollm2-135m",
        fingerprint="0123456789abcdef",
        codec="fp32",
        repeats=1,
        seeds=(0,),
        prompts=Prompts(source="test", count=len(ids), canaries=0, shortest=10, longest=20, digest="d"),
        owned=None,
        client=ClientCost(layers=2 * k, bytes=k * 10**8),
        texts_kept=False,
        unmeasured={},
        seconds=1.5,
        digest="d",
    )
    if status != "complete":
        return CellRecord(new_record(PREFIX + cell.key, "cutlayer audit run", msgspec.to_builtins(config), {}, {}))
    accuracy = sum(a * n for a, n in zip(read, tokens, strict=True)) / sum(tokens)
    shares = {"token_accuracy": accuracy, "advantage": accuracy, **figures}
    return CellRecord(
        new_record(
            PREFIX + cell.key,
            "cutlayer audit run",
            msgspec.to_builtins(config),
            {name: Figure(value, value - 0.01, value + 0.01, 3, "fraction") for name, value in shares.items()},
            {
                "id": list(ids),
                "seed": [0] * len(ids),
                "tokens": list(tokens),
                "token_accuracy": list(read),
                "prior_token_accuracy": [0.0] * len(ids),
            },
        )
    )


def low(share: float = 0.1) -> dict[str, Any]:
    return {"read": (share,) * 3, "content_advantage": share, "perplexity_increase": 0.02}


def test_one_setting_is_stated_plainly() -> None:
    said = verdict(settings_of([made("ridge", read=(0.5,) * 3), made("search", read=(1.0,) * 3)]), Bar())
    assert said.headline == "The server reads 100 % (99–101 %) of your tokens at cut 2:-2 with defence none, by search."


def test_several_settings_none_good_enough() -> None:
    said = verdict(settings_of([made(), made(defence="gaussian:sigma=1", read=(0.5,) * 3)]), Bar())
    assert said.headline == "No measured setting meets the bar."
    assert "Least readable: The server reads 50 %" in " ".join(said.rest)


def test_a_setting_that_meets_the_bar_is_named() -> None:
    records = [made(), made(defence="gaussian:sigma=1", **low())]
    said = verdict(settings_of(records), Bar())
    assert said.headline == "1 of 2 measured settings meets the bar."
    assert "gaussian:sigma=1" in said.rest[0]


def test_low_figures_of_weak_attacks_prove_nothing() -> None:
    setting = settings_of([made("ridge", "gaussian:sigma=1", **low()), made("mlp", "gaussian:sigma=1", **low())])[0]
    assert any("ignore the defence" in reason for reason in setting.shortcomings(Bar()))
    assert "no evidence of safety" in " ".join(verdict([setting], Bar()))
    assert not settings_of([made("map-beam", "gaussian:sigma=1", **low())])[0].shortcomings(Bar())


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"read": (0.3,) * 3}, "advantage 0.30"),
        ({"content_advantage": 0.21}, "content words 0.21"),
        ({"canary_exact_match": 0.02}, "planted secrets read 0.02"),
        ({"perplexity_increase": 0.06}, "perplexity increase 0.06"),
    ],
)
def test_every_part_of_the_bar_counts(figures: dict[str, Any], reason: str) -> None:
    setting = settings_of([made(defence="gaussian:sigma=1", **{**low(), **figures})])[0]
    assert len(setting.shortcomings(Bar())) == 1
    assert reason in setting.shortcomings(Bar())[0]


def test_a_setting_is_as_good_as_its_worst_cell() -> None:
    setting = settings_of([made("ridge", read=(0.2,) * 3), made("search"), made("mlp", status="error")])[0]
    assert setting.worst is not None
    assert setting.worst.cell.attack == "search"
    assert "an attack failed to run" in setting.shortcomings(Bar())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "100 %"),
        (0.9999999999, "100 %"),
        (0.9996, "99.96 %"),
        (0.996, "99.6 %"),
        (0.5, "50 %"),
        (0.0, "0 %"),
        (0.0004, "0.04 %"),
    ],
)
def test_percentages(value: float, shown: str) -> None:
    assert percent(value) == shown


class _Page(html.parser.HTMLParser):
    """Elements and the addresses they name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster") and value:
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)


def grid() -> list[CellRecord]:
    """Two cuts, two defences, two attacks, with utility."""
    return [
        made(attack, defence, k, read=(share,) * 3, perplexity_increase=0.0 if defence == "none" else 0.1)
        for k in (2, 4)
        for defence, share in (("none", 0.9), ("gaussian:sigma=1", 0.4))
        for attack in ("ridge", "search")
    ]


def test_page_is_self_contained() -> None:
    text = render_page(grid())
    page = _Page(text)
    assert page.tags.count("svg") == 2 + 4  # heat map, trade-off, a bar chart for each setting
    assert all(address.startswith("#") for address in page.addresses)
    assert not page.handlers
    assert "script" not in page.tags
    assert "://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert len(text) < 2_000_000
    assert "prefers-color-scheme: dark" in text
    targets = re.findall(r'\sid="([^"]*)"', text)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(targets)
    for stand_in in ("#010203", "#010204", "#010205"):
        assert stand_in not in text


def test_page_says_what_was_measured_and_what_was_not() -> None:
    text = render_page([*grid(), made("mlp", status="not applicable"), made("gru", status="error")])
    for words in (
        "No measured setting meets the bar.",
        "not applicable",
        "failed",
        "because",
        "What this does not show",
    ):
        assert words in text
    assert "Prompts are named by id; their texts were not kept." in text


def test_hostile_names_stay_text() -> None:
    """Ids, specifications, reasons and texts come from files that may be a stranger's."""
    records = [made("search:" + HOSTILE, HOSTILE, k, ids=(HOSTILE, "b", "c"), perplexity_increase=0.1) for k in (2, 4)]
    texts = made("search", HOSTILE, 2)
    texts.samples["truth"] = [HOSTILE, "x", "y"]
    texts.samples["guess"] = [f"wrong {HOSTILE}", "x", "y"]
    page = render_page([texts, *records, made("mlp", HOSTILE, status="error")])
    parsed = _Page(page)
    assert not {"img", "script"} & set(parsed.tags)
    assert not parsed.handlers
    assert "&lt;img src=x" in page


def test_page_with_texts_is_for_its_owner(tmp_path: Path) -> None:
    record = made(read=(1.0, 0.5, 1.0))
    record.samples["truth"] = ["Ada owes 350 euros", "b b", "c"]
    record.samples["guess"] = ["Ada owes 250 euros", "b d", "c"]
    write_page([record], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_mode & 0o077 == 0
    text = (tmp_path / "page.html").read_text()
    assert "<mark>Ada owes</mark>" in text
    assert "<s>250</s>" in text
    write_page([made()], tmp_path / "open.html")
    assert (tmp_path / "open.html").stat().st_mode & 0o044
    with pytest.raises(StoreError, match="cannot write"):
        write_page([made()], tmp_path / "none" / "page.html")


def test_differences_are_paired_by_prompt() -> None:
    """All three prompts lose exactly 0.1: however prompts are drawn, the change is the same."""
    before, after = made(read=(1.0, 0.9, 0.5)), made(read=(0.9, 0.8, 0.4))
    change = compare([before], [after])[0]
    assert change.paired
    assert change.token_accuracy is not None
    assert change.token_accuracy.value == pytest.approx(-0.1)
    assert change.token_accuracy.low == pytest.approx(change.token_accuracy.high)
    assert change.clear
    same = compare([before], [before])[0]
    assert same.token_accuracy == exact(0.0, "change", 3)
    assert not same.clear


def test_differences_on_other_prompts_are_wider() -> None:
    before = made(read=(1.0, 0.9, 0.5))
    change = compare([before], [made(read=(0.9, 0.8, 0.4), ids=("x", "y", "z"))])[0]
    assert not change.paired
    assert change.token_accuracy is not None
    assert change.token_accuracy.high - change.token_accuracy.low > 0.1


def test_differences_list_what_only_one_has() -> None:
    kinds = [one.kind for one in compare([made("ridge"), made("mlp")], [made("search"), made("mlp", status="error")])]
    assert kinds == ["only in the first", "not measured in both", "only in the second"]


def test_gate_passes_and_fails() -> None:
    good = [made("search", "gaussian:sigma=1", read=(0.25,) * 3), made("ridge", "gaussian:sigma=1", read=(0.1,) * 3)]
    plan = Plan("f", "m", [record.cell for record in good])
    assert judge(good, plan, 0.25).passed
    assert not judge(good, plan, 0.24).passed
    assert "interval reaches above the bound" in judge(good, plan, 0.25).checks[0].words


def test_gate_fails_on_what_is_missing_failed_or_unknown() -> None:
    low_cell = made("search", read=(0.1,) * 3)
    absent = made("ridge").cell
    assert [check.outcome for check in judge([low_cell], Plan("f", "m", [low_cell.cell, absent]), 0.5).checks] == [
        "pass",
        "error",
    ]
    assert not judge([low_cell, made("mlp", status="error")], None, 0.5).passed
    assert judge([low_cell, made("mlp", status="not applicable")], None, 0.5).passed
    assert not judge([made("mlp", status="not applicable")], None, 0.5).passed
    unmeasured = made("gru", read=(0.1,) * 3)
    del unmeasured.figures["advantage"]
    assert not judge([low_cell, unmeasured], None, 0.5).passed


def test_gate_warns_where_only_weak_attacks_were_tried() -> None:
    judgement = judge([made("ridge", read=(0.1,) * 3)], None, 0.5)
    assert judgement.passed
    assert any("do not show safety" in warning for warning in judgement.warnings)


def test_junit_counts_and_names_every_cell() -> None:
    records = [
        made("search"),
        made("ridge", read=(0.1,) * 3),
        made("mlp", status="error"),
        made("gru", status="not applicable"),
    ]
    hostile = made("search", "\x00<&>\ud7ff", read=(0.1,) * 3)
    written = junit(judge([*records, hostile], None, 0.25), 0.25)
    root = ElementTree.fromstring(written)  # noqa: S314 - our own
    suite = root.find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases[:2]] == ["search as W2", "ridge as W2"]
    failure = cases[0].find("failure")
    assert failure is not None
    assert "advantage 0.940 (0.930–0.950), allowed 0.25" in (failure.text or "")


def test_the_cheapest_that_meets_the_bar_is_recommended() -> None:
    strong = "gaussian:sigma=1"
    records = [made(k=2), made(k=4), made("search", strong, 4, **low(0.05)), made("search", strong, 2, **low(0.2))]
    choice = recommend(settings_of(records), Bar())
    assert choice.chosen is not None
    assert (choice.chosen.setting.cut, choice.chosen.setting.defence) == ("2:-2", strong)
    frontier = {(one.setting.cut, one.setting.defence): one.frontier for one in choice.candidates}
    # Undefended, both cuts read alike and cost nothing in perplexity, so the one that needs more memory is dominated.
    assert frontier == {("2:-2", "none"): True, ("4:-4", "none"): False, ("2:-2", strong): True, ("4:-4", strong): True}


def test_nothing_is_recommended_that_misses_the_bar() -> None:
    choice = recommend(settings_of([made(), made(defence="gaussian:sigma=1", read=(0.1,) * 3)]), Bar())
    assert choice.chosen is None
    assert choice.words.startswith("No measured setting meets the bar")
    assert "its cost in perplexity was not measured" in choice.words


def directory_of(tmp_path: Path, *records: CellRecord) -> Shelf:
    shelf = Shelf(tmp_path / "audit")
    for record in records:
        shelf.save(record.record)
    return shelf


def test_a_directory_reads_back(tmp_path: Path) -> None:
    shelf = directory_of(tmp_path, *grid())
    assert {record.cell.key for record in shelf.records()} == {record.cell.key for record in grid()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no json", "is no record"),
        (b"[" * 100_000, "is no record"),
        (b"{}", "is no record"),
        (b'{"name": 1}', "is no record"),
        (b"\xff\xfe", "is no record"),
        (b'{"name": "\xff"}', "is no record"),
        (b"", "is no record"),
    ],
    ids=["garbage", "deep", "empty object", "wrong type", "no utf-8", "no utf-8 inside", "empty"],
)
def test_strange_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    shelf = directory_of(tmp_path, made())
    (shelf.directory / "audit-strange.json").write_bytes(content)
    with pytest.raises(StoreError, match=f"audit-strange.json.*{message}|audit-strange.json {message}"):
        shelf.records()


def test_huge_files_and_pipes_are_not_read(tmp_path: Path) -> None:
    import os

    shelf = directory_of(tmp_path, made())
    strange = shelf.directory / "audit-strange.json"
    with strange.open("wb") as stream:
        stream.truncate(MAX_RECORD_BYTES + 1)
    with pytest.raises(StoreError, match="at most"):
        shelf.records()
    strange.unlink()
    os.mkfifo(strange)
    with pytest.raises(StoreError, match="no regular file"):
        shelf.records()


def _tampered(change: dict[str, Any]) -> bytes:
    record = msgspec.to_builtins(made().record)
    for path, value in change.items():
        *parents, last = path.split("/")
        inner = record
        for name in parents:
            inner = inner[name]
        inner[last] = value
    return msgspec.json.encode(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config/status": "fine"}, "none of an audit's cell"),
        ({"config/cell/span": [9, 3, 30]}, "none of an audit's cell"),
        ({"config/cell/attack": "ridge"}, "is of another cell"),
        ({"samples/tokens": [1]}, "different lengths"),
        ({"samples/tokens": ["1", "2", "3"]}, "other things"),
        ({"samples/id": [1, 2, 3]}, "other things"),
        ({"samples": {}}, "lacks samples"),
        ({"figures/advantage/value": 1e400}, "is no record|not finite|other"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_records_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    (directory / f"{made().record.name}.json").write_bytes(_tampered(change))
    with pytest.raises(StoreError, match=message):
        Shelf(directory).records()


def test_strange_plans_are_refused(tmp_path: Path) -> None:
    shelf = directory_of(tmp_path, made())
    cell = {**msgspec.to_builtins(made().cell), "span": [9, 3, 30]}
    for content in (b"{", b"[]", msgspec.json.encode({"fingerprint": "f", "model": "m", "cells": [cell]})):
        (shelf.directory / "plan.json").write_bytes(content)
        with pytest.raises(StoreError, match="is no plan"):
            shelf.records()


def test_missing_and_empty_directories_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cutlayer audit run --out"):
        Shelf(tmp_path / "none").records()
    with pytest.raises(StoreError, match="holds no records"):
        Shelf(tmp_path).records()


def test_figures_must_be_finite() -> None:
    record = made().record
    record.figures["advantage"] = Figure(math.nan, 0, 1, 3, "fraction")
    with pytest.raises(StoreError, match="not finite"):
        CellRecord(record)
