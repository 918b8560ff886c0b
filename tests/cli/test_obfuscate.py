"""`cutlayer obfuscate` and `cutlayer keys inspect` as a user meets them."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from cutlayer.cli.app import app
from cutlayer.errors import InputError, InsecureError, KeyFileError
from cutlayer.obfuscation import keyfile
from cutlayer.obfuscation.keyfile import MAX_KEY_BYTES, open_client_key, open_owner_key
from cutlayer.obfuscation.marker import read_marker
from cutlayer.types import Secret
from cutlayer.wire.private_files import read_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = b"four words of nonsense"


@pytest.fixture(autouse=True)
def passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A passphrase file that the environment names, and keys that open quickly."""
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_bytes(WORDS + b"\n")
    monkeypatch.setenv("CUTLAYER_PASSPHRASE_FILE", str(file))
    assert keyfile.seal.__kwdefaults__ == {"cost": keyfile.COST}
    monkeypatch.setitem(keyfile.seal.__kwdefaults__, "cost", 1 << 14)
    return file


def _run(*arguments: str | Path | int) -> int:
    return app([*map(str, arguments)], result_action="return_value")


def test_export_keys_and_their_inspection(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key = tmp_path / "out", tmp_path / "keys" / "owner.key"
    assert (
        _run("obfuscate", tiny("llama"), "--out", out, "--key", key, "--mode", "noisy", "--alpha-e", 0.125, "--quiet")
        == 0
    )
    said = capsys.readouterr().out
    assert f"To the host:   {out}" in said
    assert "Does not hide: Anything from a host that has, or can guess, the public model" in said
    for file in (key, key.with_name("client.key")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    owner = open_owner_key(read_private(key, MAX_KEY_BYTES), Secret(WORDS))
    client = open_client_key(read_private(key.with_name("client.key"), MAX_KEY_BYTES), Secret(WORDS))
    client.check(read_marker(out))
    assert client.tau.tolist() == owner.tau().tolist()

    for file in (key, key.with_name("client.key")):
        assert _run("keys", "inspect", file) == 0
        lines = capsys.readouterr().out
        assert _run("keys", "inspect", file, "--json") == 0
        shown = capsys.readouterr().out
        assert owner.identity.key_id in lines
        assert json.loads(shown)["vocabulary"] == 101
        for secret in (owner.seed.reveal().hex(), WORDS.decode(), str(client.tau[:4].tolist())[1:-1]):
            assert secret not in lines + shown
    assert "0.125" not in lines  # the client's key does not know how it was made


def test_json_and_a_gguf(tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", tmp_path / "model.gguf"
    assert _run("obfuscate", tiny("llama"), "--out", out, "--key", tmp_path / "o.key", "--gguf", file, "--json") == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert "transforming" in captured.err
    assert (made["directory"], made["gguf"], made["settings"]["mode"]) == (str(out), str(file), "exact")
    assert made["key_id"] == read_marker(out).key_id
    assert _run("obfuscate", "gguf", out, tmp_path / "again.gguf", "--quiet") == 0
    assert (tmp_path / "again.gguf").read_bytes() == file.read_bytes()


def test_same_command_continues_after_an_interruption(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cutlayer.obfuscation.transform import Transform

    command = ("obfuscate", tiny("llama"), "--out", tmp_path / "out", "--key", tmp_path / "owner.key", "--quiet")
    make, made = Transform.make, []

    def interrupted(self: Transform, place: object) -> object:
        if len(made) == 30:
            raise KeyboardInterrupt
        made.append(place)
        return make(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(Transform, "make", interrupted)
        with pytest.raises(SystemExit, match="130"):
            _run(*command)
    before = (tmp_path / "owner.key").read_bytes(), (tmp_path / "client.key").read_bytes()
    with pytest.raises(InputError, match="was made for mode exact"):
        _run(*command, "--mode", "noisy")
    (tmp_path / "client.key").unlink()  # lost with the interruption: made again
    assert _run(*command) == 0
    assert (tmp_path / "owner.key").read_bytes() == before[0]
    client = open_client_key((tmp_path / "client.key").read_bytes(), Secret(WORDS))
    client.check(read_marker(tmp_path / "out"))


def test_nothing_is_overwritten_and_no_key_goes_to_the_host(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base, out, key = tiny("llama"), tmp_path / "out", tmp_path / "keys" / "owner.key"
    for inside in (("--key", out / "owner.key"), ("--key", key, "--client-key", out / "deep" / "client.key")):
        with pytest.raises(InsecureError, match="goes to the host"):
            _run("obfuscate", base, "--out", out, *inside)
    with pytest.raises(InputError, match="two files"):
        _run("obfuscate", base, "--out", out, "--key", key, "--client-key", key)
    with pytest.raises(InputError, match="no GGUF"):
        _run("obfuscate", tiny("gemma"), "--out", out, "--key", key, "--gguf", tmp_path / "model.gguf")
    assert not key.exists()
    key.parent.mkdir()
    (key.parent / "client.key").write_text("of another export")
    with pytest.raises(InputError, match="never overwritten"):
        _run("obfuscate", base, "--out", out, "--key", key)
    assert [file.name for file in key.parent.iterdir()] == ["client.key"]
    out.mkdir()
    with pytest.raises(InputError, match="never overwritten"):
        _run("obfuscate", base, "--out", out, "--key", tmp_path / "owner.key")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="never overwritten"):
        _run("obfuscate", base, "--out", tmp_path / "new", "--key", link, "--client-key", tmp_path / "c.key", "--quiet")
    assert not (tmp_path / "elsewhere").exists()


def test_wrong_passphrase_and_wrong_file(tiny: Callable[[str], Path], tmp_path: Path, passphrase: Path) -> None:
    command = ("obfuscate", tiny("llama"), "--out", tmp_path / "out", "--key", tmp_path / "owner.key", "--quiet")
    assert _run(*command) == 0
    passphrase.write_text("others\n")
    with pytest.raises(KeyFileError, match="passphrase is another"):
        _run("obfuscate", tiny("llama"), "--out", tmp_path / "new", "--key", tmp_path / "owner.key")
    with pytest.raises(KeyFileError, match="no key file"):
        _run("keys", "inspect", passphrase)
    passphrase.chmod(0o640)
    new = ("--out", tmp_path / "new", "--key", tmp_path / "other.key", "--client-key", tmp_path / "c.key")
    with pytest.raises(InsecureError, match="chmod 600"):
        _run("obfuscate", tiny("llama"), *new)


def test_without_passphrase_or_terminal(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUTLAYER_PASSPHRASE_FILE")
    with pytest.raises(InputError, match="--passphrase-file"):
        _run("obfuscate", tiny("llama"), "--out", tmp_path / "out", "--key", tmp_path / "owner.key")
    assert not (tmp_path / "owner.key").exists()


def test_passphrase_typed_twice(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUTLAYER_PASSPHRASE_FILE")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    command = ("obfuscate", tiny("llama"), "--out", tmp_path / "out", "--key", tmp_path / "owner.key", "--quiet")
    typed = iter(["once", "twice"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    with pytest.raises(InputError, match="differ"):
        _run(*command)
    typed = iter(["once", "once"])
    assert _run(*command) == 0
    open_owner_key((tmp_path / "owner.key").read_bytes(), Secret(b"once"))


def test_modes_say_what_they_hide(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("obfuscate", "modes") == 0
    said = capsys.readouterr().out
    assert "give the permutation back" in said
    assert _run("obfuscate", "modes", "--json") == 0
    held = json.loads(capsys.readouterr().out)
    assert sorted(held["modes"]) == ["exact", "monomial", "noisy", "paper"]
