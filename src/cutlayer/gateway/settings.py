"""All settings of the gateway, and where each comes from: flag, environment, file or default, in this order.

The file is TOML with the names below; the environment has them in capitals behind ``CUTLAYER_`` (``token`` is
``CUTLAYER_TOKEN_FILE``, as for the other verbs). A name that does not exist is refused in the file; in the environment one that
looks like a misspelt setting is. No setting is itself a secret: keys and tokens are in files of their own.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

Source = Literal["flag", "environment", "file", "default"]

_PREFIX: Final = "CUTLAYER_"
_VARIABLES: Final = {"token": "CUTLAYER_TOKEN_FILE"}
_OTHERS: Final = frozenset({"CUTLAYER_HOME"})
"""Variables that are no setting of the gateway's."""
_PATHS: Final = frozenset({"keys", "token", "key", "passphrase_file", "api_keys", "tls_cert", "tls_key"})
_LISTS: Final = frozenset({"upstream", "allow_origin", "allow_host"})
_ALIKE: Final = 0.8
_LONGEST_FILE: Final = 1 << 20

_Count = Annotated[int, msgspec.Meta(ge=1, le=256)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `cutlayer gateway` can be told."""

    server: str | None = None
    """URL of the server with the middle layers. This or `upstream` is needed."""
    upstream: tuple[str, str] | None = None
    """Kind and URL of an engine with an obfuscated model."""
    key: str | None = None
    """The client's key file of that model."""
    passphrase_file: str | None = None
    listen: str = "127.0.0.1:8411"
    name: str | None = None
    """What the model is called; None is its directory's name."""
    model: str | None = None
    cut: str | None = None
    keys: str | None = None
    token: str | None = None
    dtype: str | None = None
    codec: str | None = None
    device: str = "cpu"
    defence: str = "none"
    speculate: str | None = None
    pad_drafts: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    sessions: _Count = 4
    queue: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 16
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    max_body: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 4 << 20
    body_timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    ping: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 15.0
    grace: _Seconds = 10.0
    recover: _Seconds = 20.0
    silence: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0
    api_keys: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    allow_origin: list[str] = []
    allow_host: list[str] = []


NAMES: Final = tuple(field.name for field in msgspec.structs.fields(Settings))


class Resolved(msgspec.Struct, frozen=True):
    """Settings in effect."""

    settings: Settings
    sources: dict[str, Source]
    file: Path | None
    """That was read."""


def default_file() -> Path:
    """Where the file is if none is named."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".config") / "cutlayer" / "gateway.toml"


def variable(name: str) -> str:
    """The environment variable of a setting.

    Examples:
        >>> variable("api_keys"), variable("token")
        ('CUTLAYER_API_KEYS', 'CUTLAYER_TOKEN_FILE')
    """
    return _VARIABLES.get(name, _PREFIX + name.upper())


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> Resolved:
    """Put the sources together.

    Args:
        flags: given ones; a value of None was not given.
        environment: variables.
        file: to be read; None reads `default_file` if it exists.

    Raises:
        InputError: a value is out of range or of the wrong type, or the file is unreadable.
        UnknownNameError: there is no such setting.
    """
    chosen = file
    if chosen is None and default_file().is_file():
        chosen = default_file()
    layers: list[tuple[Source, dict[str, Any]]] = [
        ("flag", {name: value for name, value in flags.items() if value is not None}),
        ("environment", _from_environment(environment)),
        ("file", _from_file(chosen) if chosen is not None else {}),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(NAMES, "default")
    for source, layer in reversed(layers):
        _check(layer, source, chosen)
        values |= layer
        sources |= dict.fromkeys(layer, source)
    return Resolved(msgspec.convert(values, Settings, strict=False), sources, chosen)


def shown(value: object) -> object:
    """A value fit to be printed: a URL that holds credentials, which is refused anyway, without them.

    Examples:
        >>> shown("wss://me:secret@gpu.example:8410"), shown(4)
        ('***@gpu.example:8410', 4)
        >>> shown(("vllm", "https://me:secret@gpu.example"))
        ['vllm', '***@gpu.example']
    """
    if isinstance(value, tuple | list):
        return [shown(one) for one in value]
    return f"***@{value.rpartition('@')[2]}" if isinstance(value, str) and "@" in value else value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {variable(name): name for name in NAMES}
    ends = [name.removeprefix(_PREFIX) for name in known]
    for given in environment:
        if given.startswith(_PREFIX) and given not in known and given not in _OTHERS:
            close = difflib.get_close_matches(given.removeprefix(_PREFIX), ends, 1, _ALIKE)
            if close:
                raise UnknownNameError(f"environment variable {given} is no setting; did you mean {_PREFIX}{close[0]}?")
    values: dict[str, Any] = {}
    for given, name in known.items():
        text = environment.get(given, "")
        if text:
            values[name] = _listed(text) if name in _LISTS else text
    return values


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if len(content) > _LONGEST_FILE:
        raise InputError(f"{file} is longer than {_LONGEST_FILE} bytes; that is no settings file")
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no TOML: {error}") from None
    for name in values:
        if name not in NAMES:
            close = difflib.get_close_matches(name.replace("-", "_"), NAMES, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(NAMES)}"
            raise UnknownNameError(f"{file}: no setting is called {name!r}; {hint}")
    for name in _PATHS & values.keys():
        if isinstance(values[name], str):
            values[name] = str(file.parent / Path(values[name]).expanduser())
    return values


def _check(layer: dict[str, Any], source: Source, file: Path | None) -> None:
    """Refuse a wrong value where it stands, so that the message can name the place."""
    try:
        msgspec.convert(layer, Settings, strict=source == "file")
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].split("`")[0].split("[")[0]
        place = {
            "flag": f"--{name.replace('_', '-')}",
            "environment": variable(name),
            "file": f"{file}: {name}",
        }[source]
        raise InputError(f"{place}: {str(error).partition(' - at')[0]}") from None
