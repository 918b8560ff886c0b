"""`cutlayer obfuscate audit` as its users meet it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.app import app
from cutlayer.errors import InputError, KeyFileError, ModelNotFoundError, UnknownNameError
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keyfile import seal
from cutlayer.obfuscation.keys import create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.types import Secret
from cutlayer.wire.private_files import write_new

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = ["--attack", "clx", "--attack", "frequency", "--tokens", "500", "--ids", "50", "--quiet"]


def audit(*arguments: object) -> int:
    return app(["obfuscate", "audit", *map(str, arguments)], result_action="return_value")


@pytest.fixture(scope="module")
def made(tiny_with_text: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base, and a folder with an export, two client keys (of it and of another) and their passphrase."""
    base, folder = tiny_with_text("llama"), tmp_path_factory.mktemp("made")
    write_new(folder / "passphrase", b"correct horse\n")
    for name in ("export", "other"):
        key = create_owner_key(base, choose(base))
        export(base, folder / name, key)
        write_new(folder / f"{name}.key", seal(key.client(), Secret(b"correct horse"), cost=1 << 14))
    return base, folder


def test_json_says_who_reads_what(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = made
    key = ["--key", folder / "export.key", "--passphrase-file", folder / "passphrase"]
    assert audit(folder / "export", "--base", base, *key, *QUICK, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["attack"] for one in printed["attacks"]] == ["clx", "frequency"]
    assert printed["with_base"]["attack"] == "clx"
    assert printed["with_base"]["figures"]["occurrences"]["value"] == 1
    assert printed["without_base"]["attack"] == "frequency"
    assert set(printed["attacks"][0]["figures"]["ids"]) == {"value", "low", "high", "n", "unit"}


def test_the_table_names_both_kinds_of_host(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = made
    key = ["--key", folder / "export.key", "--passphrase-file", folder / "passphrase"]
    assert audit(folder / "export", "--base", base, *key, *QUICK) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "A host that has the base model reads 100.0%" in printed
    assert "A host that does not have the base model reads" in printed


def test_without_a_key_it_says_what_it_cannot_know(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = made
    assert audit(folder / "export", "--base", base, *QUICK) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not measured" in printed
    assert "channel_cosine 1" in printed
    assert "--key" in printed


def test_the_key_of_another_export_is_refused(made: tuple[Path, Path]) -> None:
    base, folder = made
    with pytest.raises(KeyFileError, match="made with key"):
        audit(
            *(folder / "export", "--base", base, *QUICK),
            *("--key", folder / "other.key", "--passphrase-file", folder / "passphrase"),
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--attack", "guess"], UnknownNameError, "available: clx"),
        (["--attack", "clx:layers=many"], InputError, "layers"),
        (["--tokens", "0"], InputError, "must both be positive"),
        (["--ids", "-3"], InputError, "must both be positive"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_read(
    made: tuple[Path, Path], options: list[str], error: type[Exception], message: str
) -> None:
    base, folder = made
    with pytest.raises(error, match=message):
        audit(folder / "export", "--base", base, *options)


def test_what_is_no_export_is_refused(made: tuple[Path, Path]) -> None:
    base, _ = made
    with pytest.raises(ModelNotFoundError, match=r"obfuscation\.json"):
        audit(base, "--base", base, *QUICK)
