"""`cutlayer doctor` against a real server process, over TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.cli.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model


def run_doctor(server: ServerProcess, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "cutlayer", "doctor", f"--server={server.url}", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_default_cut_passes(smollm2: Path) -> None:
    with ServerProcess("smollm2-135m") as server:
        code, report = run_doctor(server, f"--keys={server.client_keys}")
        assert (code, report["failed"]) == (0, [])
        found = {finding["name"]: finding for finding in report["findings"]}
        assert [name for name, finding in found.items() if finding["status"] != "ok"] == ["defence", "readability"]
        assert found["encryption"]["evidence"]["protocol"] == "TLSv1.3"
        assert found["authentication"]["evidence"] == {
            "client_certificate": "CN=client",
            "client_token": False,
            "strangers_admitted": False,
        }
        assert found["embeddings"]["evidence"]["closest_cosine"] < 0.5
        assert found["embeddings"]["evidence"]["share_identified_by_lookup"] < 0.05

        # A client that cannot get in says so, and says it in the form it was asked for.
        ca_only = server.client_keys.parent / "ca-only"
        ca_only.mkdir()
        (ca_only / "ca.pem").write_bytes((server.client_keys / "ca.pem").read_bytes())
        code, report = run_doctor(server, f"--keys={ca_only}")
        assert (code, report["failed"]) == (1, ["connection"])


def test_a_cut_at_zero_fails(smollm2: Path) -> None:
    with ServerProcess("smollm2-135m", cut="0:-2") as server:
        code, report = run_doctor(server, f"--keys={server.client_keys}")
    assert (code, report["failed"]) == (1, ["embeddings"])
    explanation = next(found["explanation"] for found in report["findings"] if found["name"] == "embeddings")
    assert "k = 0" in explanation
