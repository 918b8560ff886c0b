"""`cutlayer gateway` before it listens: what it refuses, and how it says that it is ready."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2
import pytest

from cutlayer.cli.gateway import GatewayOptions, gateway
from cutlayer.errors import InputError, InsecureError
from cutlayer.wire.certificates import create

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVER = "ws://127.0.0.1:9"
KEY = "a-key-of-good-length"


@pytest.fixture(autouse=True)
def no_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "api.keys"
    file.write_text(f"alice {KEY}\n")
    file.chmod(0o600)
    return file


def test_it_needs_a_server() -> None:
    with pytest.raises(InputError, match="--server"):
        gateway(options=GatewayOptions())


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8411"])
def test_other_addresses_need_keys_and_tls_before_anything_is_loaded(listen: str, key_file: Path) -> None:
    with pytest.raises(InsecureError, match=r"TLS .* and API keys"):
        gateway(options=GatewayOptions(server=SERVER, listen=listen))
    with pytest.raises(InsecureError, match="needs TLS"):
        gateway(options=GatewayOptions(server=SERVER, listen=listen, api_keys=str(key_file)))


def test_key_files_that_others_can_read_are_refused(key_file: Path) -> None:
    key_file.chmod(0o644)
    with pytest.raises(InsecureError, match="chmod 600"):
        gateway(options=GatewayOptions(server=SERVER, api_keys=str(key_file)))


def test_certificate_and_key_go_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="go together"):
        gateway(options=GatewayOptions(server=SERVER, tls_cert=str(tmp_path / "cert.pem")))


def test_exit_codes_are_those_of_the_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cutlayer", *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    refused = run("gateway", "--server", SERVER, "--listen", "0.0.0.0:1")
    assert refused.returncode == 2
    assert "TLS" in refused.stderr
    gone = run("gateway", "--server", SERVER)
    assert gone.returncode == 1
    assert len(gone.stderr.strip().splitlines()) == 1
    assert run("config", "show", "--sessions", "0").returncode == 2


def test_a_certificate_of_ones_own_and_a_key_let_others_in(
    key_file: Path, tmp_path: Path, tiny_with_text: Callable[[str], Path]
) -> None:
    """A real process under TLS, on all addresses; asked over loopback."""
    directory = tiny_with_text("llama")
    create(tmp_path / "keys", hosts=("127.0.0.1", "localhost"), clients=("client",), days=1)
    own = tmp_path / "keys" / "server"
    server = [sys.executable, "-m", "cutlayer", "serve", str(directory), "--listen=127.0.0.1:0"]
    with Process(server, tmp_path / "server") as model:
        command = [
            sys.executable, "-m", "cutlayer", "gateway", f"--server={model.address}", f"--model={directory}",
            "--listen=0.0.0.0:0", f"--api-keys={key_file}",
            f"--tls-cert={own / 'server.pem'}", f"--tls-key={own / 'server.key'}", "--name=tiny",
        ]  # fmt: skip
        with Process(command, tmp_path / "gateway") as door:
            url = door.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            assert url.startswith("https://")
            trust = ssl.create_default_context(cafile=str(own / "ca.pem"))
            with httpx2.Client(verify=trust, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
                assert client.get(f"{url}/models").json()["data"][0]["id"] == "tiny"
                answer = client.post(f"{url}/completions", json={"model": "tiny", "prompt": "hi", "max_tokens": 3})
                assert answer.status_code == 200, answer.text
            with httpx2.Client(verify=trust) as stranger:
                assert stranger.get(f"{url}/models").status_code == 401
            assert door.stop() == 0
            [line] = [line for line in door.output().splitlines() if not line.startswith("{")]
            assert line.startswith(f"{door.address} serves tiny. Not measured")
            assert KEY not in door.output()


class Process:
    """A verb that writes where it listens to a ready file."""

    def __init__(self, command: list[str], folder: Path) -> None:
        folder.mkdir()
        self._ready, self._log = folder / "ready", folder / "log"
        self._command = [*command, f"--ready-file={self._ready}"]

    def __enter__(self) -> Process:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (self._ready.exists() and self._ready.read_text().endswith("\n")):
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)
        self.address = self._ready.read_text().strip()
        return self

    def output(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
