"""`hf:ORG/NAME` against a hub on loopback: what is fetched, what never is, and what each refusal is called."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from cutlayer.errors import DownloadError, InputError, ModelNotFoundError
from cutlayer.models.locate import fingerprint, locate, locate_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.json": b"{}",
    "model.safetensors": save({"w": torch.zeros(2)}),
    "consolidated.safetensors": b"the weights again",
    "pytorch_model.bin": b"a pickle",
    "original/model.safetensors": b"the weights a third time",
    "modeling_custom.py": b"code",
}


@dataclass
class Hub:
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    refusal: tuple[int, str] | None = None  # status, X-Error-Code
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.refusal:
            return self.refusal[0], {"X-Error-Code": self.refusal[1], "X-Error-Message": "no"}, b"{}"
        if path.startswith("/api/models/org/name/revision/"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
            info = {"id": "org/name", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}  # noqa: S324
                for name, body in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        body = self.files.get(name)
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.fetched.append(name)
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    offered = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = offered.answer(self.path.partition("?")[0])
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Keep test output clean."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # this hub is on loopback
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield offered
        server.shutdown()
        thread.join()


def test_only_files_that_cannot_carry_code(hub: Hub) -> None:
    directory = locate("hf:org/name")
    wanted = {"config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"}
    assert {file.name for file in directory.iterdir()} == wanted
    assert set(hub.fetched) == wanted
    assert fingerprint(directory)


def test_revision_and_second_use(hub: Hub) -> None:
    directory = locate(f"hf:org/name@{COMMIT}")
    hub.fetched.clear()
    assert locate(f"hf:org/name@{COMMIT}") == directory
    assert hub.fetched == []


def test_config_alone(hub: Hub) -> None:
    directory = locate_config("hf:org/name")
    assert set(hub.fetched) == {"config.json"}
    assert [file.name for file in directory.iterdir()] == ["config.json"]
    assert locate("hf:org/name") == directory  # the rest joins it
    assert (directory / "model.safetensors").is_file()


def test_repository_without_safetensors(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(DownloadError, match="no safetensors model"):
        locate("hf:org/name")
    assert "pytorch_model.bin" not in hub.fetched


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        ((404, "RepoNotFound"), ModelNotFoundError, "no repository 'org/name'"),
        ((404, "RevisionNotFound"), ModelNotFoundError, "no revision 'v9'"),
        ((403, "GatedRepo"), DownloadError, "accept its licence"),
        ((500, ""), DownloadError, "hf:org/name"),
    ],
)
def test_refusals(hub: Hub, refusal: tuple[int, str], error: type[Exception], message: str) -> None:
    hub.refusal = refusal
    with pytest.raises(error, match=message):
        locate("hf:org/name@v9")


def test_unreachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match="cannot reach the hub for hf:org/name"):
        locate("hf:org/name")


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"cannot reach the hub.*directory of a copy"):
        locate("hf:org/name")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:../name", "hf:org/na me"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="hf:"):
        locate(name)
