"""From a name to a directory, and what tells two models apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from cutlayer.errors import IntegrityError, ModelNotFoundError, WeightsError
from cutlayer.models.checkpoint import Checkpoint, TensorHeader
from cutlayer.models.locate import FINGERPRINT_LENGTH, fingerprint, locate, pulled_models
from cutlayer.models.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"model_type": "llama", "hidden_size": 4, "transformers_version": "5.23.0"}
TENSORS = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(5, dtype=torch.bfloat16)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTLAYER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def model(directory: Path, config: dict[str, object] = CONFIG, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def sharded(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    files = {name: f"model-{i}-of-2.safetensors" for i, name in enumerate(TENSORS, start=1)}
    for name, file in files.items():
        save_file({name: TENSORS[name]}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return directory


def pulled(home: Path, name: str = "mine", source_sha256: str = "0" * 64) -> Path:
    directory = model(home / "models" / name)
    size = (directory / "model.safetensors").stat().st_size
    manifest = Manifest(name, "package 1.0", source_sha256, "MIT", "cutlayer", {"model.safetensors": size})
    (directory / "cutlayer.json").write_bytes(msgspec.json.encode(manifest))
    return directory


def test_pulled_model_by_name(home: Path) -> None:
    directory = pulled(home)
    assert locate("mine") == directory
    assert pulled_models() == ["mine"]


def test_pulled_model_wins_over_a_directory_of_its_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = pulled(home)
    model(tmp_path / "here" / "mine")
    monkeypatch.chdir(tmp_path / "here")
    assert locate("mine") == directory
    assert locate("./mine").samefile(tmp_path / "here" / "mine")


def test_an_interrupted_pull_is_not_there(home: Path) -> None:
    directory = pulled(home)
    (directory / "model.safetensors").write_bytes(b"")
    assert pulled_models() == []
    with pytest.raises(ModelNotFoundError, match="pulled models: none"):
        locate("mine")
    (directory / "cutlayer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="pulled models: none"):
        locate("mine")


@pytest.mark.parametrize("content", [b'{"name": 1}', b'{"name": "\xff"}'])
def test_malformed_manifest_says_what_to_do(home: Path, content: bytes) -> None:
    directory = pulled(home)
    (directory / "cutlayer.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"cutlayer\.json is malformed .*pull the model again"):
        locate("mine")


@pytest.mark.parametrize("make", [model, sharded])
def test_local_directory(tmp_path: Path, make) -> None:
    directory = make(tmp_path / "local")
    assert locate(str(directory)) == directory


def test_directory_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = model(tmp_path / "local")
    assert locate("~/local") == directory


def test_unknown_name_says_what_there_is_and_how_to_get_more(home: Path) -> None:
    pulled(home)
    with pytest.raises(ModelNotFoundError) as caught:
        locate("absent")
    for part in ("'absent'", "pulled models: mine", "cutlayer pull", "hf:ORG/NAME"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../models"])
def test_names_do_not_lead_out_of_the_cache(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled(home)
    monkeypatch.chdir(home)
    with pytest.raises(ModelNotFoundError):
        locate(name)


def test_headers_without_opening(tmp_path: Path) -> None:
    for directory in (model(tmp_path / "one"), sharded(tmp_path / "two")):
        checkpoint = Checkpoint(directory)
        assert checkpoint.headers() == {"a.weight": TensorHeader("F32", (2, 3)), "b.weight": TensorHeader("BF16", (5,))}
        assert list(checkpoint.headers()) == checkpoint.names()
        assert checkpoint.opened == []


def test_index_that_promises_what_a_shard_lacks(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "model")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"absent": "model-1-of-2.safetensors"}}))
    with pytest.raises(WeightsError, match=r"model-1-of-2\.safetensors"):
        Checkpoint(directory).headers()


def test_fingerprint_is_the_same_for_the_same_model(tmp_path: Path) -> None:
    here = fingerprint(model(tmp_path / "here"))
    elsewhere = model(
        tmp_path / "elsewhere",
        config={"transformers_version": "6", "_name_or_path": "x", "hidden_size": 4, "model_type": "llama"},
    )
    assert len(here) == FINGERPRINT_LENGTH
    assert fingerprint(elsewhere) == here
    assert fingerprint(sharded(tmp_path / "sharded")) == here


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (CONFIG | {"rope_theta": 5.0}, TENSORS),
        (CONFIG, TENSORS | {"c.weight": torch.zeros(1)}),
        (CONFIG, TENSORS | {"a.weight": torch.zeros(3, 2)}),
        (CONFIG, TENSORS | {"a.weight": torch.zeros(2, 3, dtype=torch.float16)}),
    ],
    ids=["config", "names", "shape", "dtype"],
)
def test_fingerprint_differs(tmp_path: Path, config, tensors) -> None:
    assert fingerprint(model(tmp_path / "one")) != fingerprint(model(tmp_path / "two", config, tensors))


def test_fingerprint_tells_what_was_converted(home: Path) -> None:
    one = fingerprint(pulled(home, "one", "0" * 64))
    assert fingerprint(pulled(home, "same", "0" * 64)) == one
    assert fingerprint(pulled(home, "two", "1" * 64)) != one


@pytest.mark.parametrize(("content", "message"), [("[]", "holds a list"), ("{", "cannot read"), (None, "cannot read")])
def test_fingerprint_needs_a_config(tmp_path: Path, content: str | None, message: str) -> None:
    directory = model(tmp_path / "model")
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_text(content)
    with pytest.raises(ModelNotFoundError, match=message):
        fingerprint(directory)
