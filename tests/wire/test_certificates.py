"""Certificates on disk: contents, file modes, and that nothing is ever overwritten."""

from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from cutlayer.errors import InputError, InsecureError
from cutlayer.wire.certificates import add_client, create, inspect

if TYPE_CHECKING:
    from pathlib import Path


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def _read(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_layout_and_modes(tmp_path: Path) -> None:
    create(tmp_path / "keys", clients=["client", "alice"])
    files = {str(file.relative_to(tmp_path / "keys")): _mode(file) for file in (tmp_path / "keys").rglob("*.*")}
    assert files == {
        "ca/ca.pem": 0o644,
        "ca/ca.key": 0o600,
        "server/ca.pem": 0o644,
        "server/server.pem": 0o644,
        "server/server.key": 0o600,
        "client/ca.pem": 0o644,
        "client/client.pem": 0o644,
        "client/client.key": 0o600,
        "alice/ca.pem": 0o644,
        "alice/client.pem": 0o644,
        "alice/client.key": 0o600,
    }
    assert {_mode(folder) for folder in (tmp_path / "keys").iterdir()} == {0o700}


def test_what_certificates_say(tmp_path: Path) -> None:
    create(tmp_path, hosts=["GPU.example", "10.0.0.7", "::1"], clients=["alice"], days=30)
    server, client, ca = (_read(tmp_path / file) for file in ("server/server.pem", "alice/client.pem", "ca/ca.pem"))

    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["gpu.example", "10.0.0.7", "::1"]
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert list(client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert client.subject.rfc4514_string() == "CN=alice"
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    now = datetime.datetime.now(datetime.UTC)
    for certificate in (server, client, ca):
        assert abs(certificate.not_valid_after_utc - now - datetime.timedelta(days=30)) < datetime.timedelta(minutes=1)
        assert certificate.not_valid_before_utc < now - datetime.timedelta(
            minutes=30
        )  # room for clocks that are behind
    server.verify_directly_issued_by(ca)
    client.verify_directly_issued_by(ca)


def test_two_authorities_differ_in_name_and_key(tmp_path: Path) -> None:
    create(tmp_path / "a")
    create(tmp_path / "b")
    first, second = (_read(tmp_path / side / "ca" / "ca.pem") for side in "ab")
    assert first.subject != second.subject
    assert first.public_key() != second.public_key()


def test_defaults_are_loopback(tmp_path: Path) -> None:
    create(tmp_path)
    (server,) = (info for info in inspect(tmp_path) if info.role == "server")
    assert server.names == ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize("present", ["ca", "server", "client"])
def test_nothing_is_overwritten(tmp_path: Path, present: str) -> None:
    create(tmp_path)
    before = _contents(tmp_path)
    for folder in {"ca", "server", "client"} - {present}:
        for file in (tmp_path / folder).iterdir():
            file.unlink()
        (tmp_path / folder).rmdir()
    with pytest.raises(InputError, match="nothing is overwritten"):
        create(tmp_path)
    assert _contents(tmp_path) == {name: content for name, content in before.items() if name.startswith(present + "/")}


@pytest.mark.parametrize(
    "arguments",
    [
        {"hosts": ["https://gpu.example"]},
        {"hosts": ["gpu.example:8443"]},
        {"hosts": ["*.example"]},
        {"hosts": ["1.2.3.999"]},
        {"hosts": ["fe80::1%eth0"]},
        {"hosts": ["bücher.example"]},
        {"hosts": [""]},
        {"hosts": []},
        {"clients": ["../up"]},
        {"clients": ["a/b"]},
        {"clients": ["CA"]},
        {"clients": ["server"]},
        {"clients": [".hidden"]},
        {"clients": [""]},
        {"clients": ["x" * 65]},
        {"clients": ["twice", "twice"]},
        {"days": 0},
        {"days": 36500},
    ],
)
def test_invalid_values_leave_nothing_behind(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        create(tmp_path / "keys", **arguments)
    assert not (tmp_path / "keys").exists()


def test_add_client(tmp_path: Path) -> None:
    create(tmp_path, days=30)
    before = _contents(tmp_path)
    info = add_client(tmp_path, "carol")
    assert (info.file, info.role, info.subject) == ("carol/client.pem", "client", "carol")
    assert info.ends == _read(tmp_path / "ca" / "ca.pem").not_valid_after_utc
    assert _mode(tmp_path / "carol" / "client.key") == 0o600
    _read(tmp_path / "carol" / "client.pem").verify_directly_issued_by(_read(tmp_path / "ca" / "ca.pem"))
    after = _contents(tmp_path)
    assert {name: after[name] for name in before} == before
    with pytest.raises(InputError, match="never overwritten"):
        add_client(tmp_path, "carol")
    assert _contents(tmp_path) == after


def test_add_client_needs_a_usable_authority(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no CA"):
        add_client(tmp_path, "carol")
    create(tmp_path / "old", days=1, now=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3))
    with pytest.raises(InputError, match="expired on"):
        add_client(tmp_path / "old", "carol")
    create(tmp_path / "a")
    create(tmp_path / "b")
    (tmp_path / "a" / "ca" / "ca.key").write_bytes((tmp_path / "b" / "ca" / "ca.key").read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        add_client(tmp_path / "a", "carol")
    (tmp_path / "b" / "ca" / "ca.key").chmod(0o640)
    with pytest.raises(InsecureError, match="0640"):
        add_client(tmp_path / "b", "carol")
    assert not list(tmp_path.glob("*/carol"))


def test_inspect_shows_no_secret_and_opens_no_key(tmp_path: Path) -> None:
    made = create(tmp_path, clients=["client", "alice"])
    for key in tmp_path.rglob("*.key"):
        key.unlink()
    found = inspect(tmp_path)
    assert found == made
    assert [info.file for info in found] == ["ca/ca.pem", "server/server.pem", "alice/client.pem", "client/client.pem"]
    assert [info.role for info in found] == ["authority", "server", "client", "client"]
    encoded = ssl.PEM_cert_to_DER_cert((tmp_path / "ca" / "ca.pem").read_text())
    assert found[0].sha256 == hashlib.sha256(encoded).hexdigest()


def test_inspect_one_side(tmp_path: Path) -> None:
    create(tmp_path)
    assert [info.file for info in inspect(tmp_path / "client")] == ["ca.pem", "client.pem"]
    with pytest.raises(InputError, match="holds no certificates"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "client" / "client.pem").write_text("no certificate")
    with pytest.raises(InputError, match="holds no PEM certificate"):
        inspect(tmp_path / "client")


def test_keys_are_pkcs8_p256(tmp_path: Path) -> None:
    create(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "server" / "server.key").read_bytes(), None)
    assert key.curve.name == "secp256r1"
