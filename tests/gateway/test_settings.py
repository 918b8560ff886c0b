"""Where settings come from, in which order, and what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.cli.config import show
from cutlayer.cli.gateway import GatewayOptions
from cutlayer.errors import InputError, UnknownNameError
from cutlayer.gateway.settings import NAMES, Settings, default_file, resolve, variable


@pytest.fixture(autouse=True)
def no_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.toml"


@given(
    flag=st.none() | st.integers(1, 256),
    environment=st.none() | st.integers(1, 256),
    written=st.none() | st.integers(1, 256),
)
def test_flags_come_before_environment_before_file_before_default(
    flag: int | None, environment: int | None, written: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("settings") / "gateway.toml"
    file.write_text("" if written is None else f"sessions = {written}\n")
    variables = {} if environment is None else {"CUTLAYER_SESSIONS": str(environment)}
    resolved = resolve({"sessions": flag}, variables, file)
    layers = [("flag", flag), ("environment", environment), ("file", written), ("default", 4)]
    source, value = next((source, value) for source, value in layers if value is not None)
    assert resolved.settings.sessions == value
    assert resolved.sources["sessions"] == source


def test_every_setting_has_a_flag_and_its_help_states_the_default() -> None:
    flags = GatewayOptions.__dataclass_fields__.keys() - {"config"}
    assert flags == set(NAMES)
    source = Path(inspect.getfile(GatewayOptions)).read_text()
    for field in msgspec.structs.fields(Settings):
        help_text = source.partition(f"    {field.name}: ")[2].split('"""')[1]
        if field.default not in (None, msgspec.NODEFAULT):
            shown = f"{field.default:.12g}" if isinstance(field.default, float) else str(field.default)
            assert f"default {shown})" in help_text, field.name


def test_the_page_lists_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    for name in NAMES:
        assert f"--{name.replace('_', '-')}" in page, name


def test_the_default_file_is_read_if_there_is_one() -> None:
    assert resolve({}, {}).file is None
    default_file().parent.mkdir(parents=True)
    default_file().write_text('server = "wss://gpu.example:8410"\n')
    resolved = resolve({}, {})
    assert resolved.settings.server == "wss://gpu.example:8410"
    assert resolved.file == default_file()


def test_paths_in_a_file_are_relative_to_it(file: Path) -> None:
    file.write_text('keys = "keys/client"\napi_keys = "/elsewhere/keys"\ntls_key = "~/key.pem"\n')
    settings = resolve({}, {}, file).settings
    assert settings.keys == str(file.parent / "keys/client")
    assert settings.api_keys == "/elsewhere/keys"
    assert settings.tls_key is not None
    assert not settings.tls_key.startswith("~")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('lisen = "127.0.0.1:1"', "listen"), ("max-tokens = 3", "max_tokens"), ("= 1", "no TOML"),
        ("frobnicate = 1", "there are: server"),
        ("sessions = 0", "sessions"), ('sessions = "4"', "sessions"), ("sessions = true", "sessions"), ("ping = nan", "ping"),
        ('allow_origin = "x"', "allow_origin"), ("[server]\nurl = 1", "server"),
    ],
)  # fmt: skip
def test_files_that_are_refused(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        resolve({}, {}, file)
    assert str(file) in str(refused.value)


def test_a_misspelt_variable_is_refused_and_others_are_nobodys_business() -> None:
    with pytest.raises(UnknownNameError, match="CUTLAYER_LISTEN"):
        resolve({}, {"CUTLAYER_LISEN": "127.0.0.1:1"})
    resolve({}, {"CUTLAYER_HOME": "/x", "CUTLAYER_CLIENTS": "1", "PATH": "/bin"})
    with pytest.raises(InputError, match="CUTLAYER_SESSIONS"):
        resolve({}, {"CUTLAYER_SESSIONS": "many"})
    with pytest.raises(InputError, match="--sessions"):
        resolve({"sessions": 0}, {})


def test_lists_and_the_shared_names_in_the_environment() -> None:
    variables = {"CUTLAYER_ALLOW_ORIGIN": "http://a, http://b", "CUTLAYER_TOKEN_FILE": "/t", "CUTLAYER_KEYS": "/k"}
    settings = resolve({}, variables).settings
    assert settings.allow_origin == ["http://a", "http://b"]
    assert (settings.token, settings.keys) == ("/t", "/k")
    assert variable("max_body") == "CUTLAYER_MAX_BODY"


def test_show_prints_values_and_where_they_come_from(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('server = "wss://me:hunter2@gpu.example:8410"\nqueue = 3\n')
    monkeypatch.setenv("CUTLAYER_SESSIONS", "7")
    assert show(options=GatewayOptions(config=file, ping=2.5), json=True) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["file"] == str(file)
    assert shown["settings"]["sessions"] == {"value": 7, "source": "environment"}
    assert shown["settings"]["queue"] == {"value": 3, "source": "file"}
    assert shown["settings"]["ping"] == {"value": 2.5, "source": "flag"}
    assert shown["settings"]["grace"] == {"value": 10.0, "source": "default"}
    assert set(shown["settings"]) == set(NAMES)
    assert "hunter2" not in json.dumps(shown)
    show(options=GatewayOptions(config=file))
    text = capsys.readouterr().out
    assert "CUTLAYER_SESSIONS" in text
    assert "hunter2" not in text
