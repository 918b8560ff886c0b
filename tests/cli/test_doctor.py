"""`cutlayer doctor` as its user sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cutlayer.audit.finding import Diagnosis, Finding
from cutlayer.cli import doctor as verb
from cutlayer.cli.client_options import ConnectOptions
from cutlayer.errors import InsecureError

if TYPE_CHECKING:
    from cutlayer.audit.finding import Status

AT = ConnectOptions(server="ws://127.0.0.1:1")


def outcome(*statuses: Status) -> Diagnosis:
    return Diagnosis(
        server=AT.server,
        model="tiny",
        cut="2:4 of 6",
        canary="tokavela [bold]",
        findings=[Finding(f"check{i}", status, f"explained {i}", {"n": i}) for i, status in enumerate(statuses)],
        crossed="this crossed",
        never_crossed="that never did",
        caveat="and this is not shown",
    )


@pytest.mark.parametrize(
    ("statuses", "code"), [(("ok", "warning"), 0), (("ok", "fail"), 1), (("fail", "warning", "fail"), 1)], ids=str
)
def test_exit_code_and_words(
    statuses: tuple[Status, ...], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_diagnose", lambda *arguments: outcome(*statuses))
    assert verb.doctor(at=AT) == code
    shown = capsys.readouterr().out
    marks = {"ok": "✓", "warning": "!", "fail": "✗"}
    for i, status in enumerate(statuses):
        assert f"{marks[status]}  check{i}  explained {i}" in shown
    for words in ("this crossed", "that never did", "this is not shown", "tokavela [bold]", "cut 2:4 of 6"):
        assert words in shown


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "_diagnose", lambda *arguments: outcome("ok", "fail"))
    assert verb.doctor(at=AT, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["failed"] == ["check1"]
    assert report["findings"][1] == {
        "name": "check1",
        "status": "fail",
        "explanation": "explained 1",
        "evidence": {"n": 1},
    }


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.doctor(at=AT, json=True) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["connection"]


def test_an_insecure_address_is_refused_before_anything_else() -> None:
    with pytest.raises(InsecureError, match="unencrypted"):
        verb.doctor(at=ConnectOptions(server="ws://203.0.113.7:8410"))
