"""`cutlayer keys` as a user meets it."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.app import app
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def _run(*arguments: str | Path) -> int:
    return app(["keys", *map(str, arguments)], result_action="return_value")


def test_from_nothing_to_one_more_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "keys"
    assert (
        _run("create", directory, "--host", "gpu.example", "--host", "10.0.0.7", "--client", "alice", "--days", 30) == 0
    )
    shown = capsys.readouterr().out
    assert "server/server.pem   server 'gpu.example'" in shown
    assert "gpu.example, 10.0.0.7" in shown
    assert "30 days left" in shown
    assert f"To the server:  {directory / 'server'}" in shown
    assert f"To the clients: {directory / 'alice'}" in shown

    assert _run("add-client", directory, "bob") == 0
    assert "client 'bob'" in capsys.readouterr().out
    assert _run("show", directory, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["role"], entry["subject"]) for entry in listed][1:] == [
        ("server", "gpu.example"),
        ("client", "alice"),
        ("client", "bob"),
    ]
    with pytest.raises(InputError, match="nothing is overwritten"):
        _run("create", directory)


def test_no_output_holds_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("create", tmp_path / "keys")
    _run("show", tmp_path / "keys")
    _run("show", tmp_path / "keys", "--json")
    _run("token", tmp_path / "token")
    shown = capsys.readouterr().out
    secrets = [line for key in tmp_path.rglob("*.key") for line in key.read_text().splitlines() if "-----" not in line]
    secrets.append((tmp_path / "token").read_text().strip())
    assert len(secrets) >= 7
    assert not [secret for secret in secrets if secret in shown]


def test_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("token", tmp_path / "token") == 0
    assert "--token" in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    with pytest.raises(InputError, match="never overwritten"):
        _run("token", tmp_path / "token")
