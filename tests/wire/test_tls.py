"""Real TLS handshakes on loopback: who is let in, who is not, and what they are told."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from cutlayer.errors import ConnectionLostError, InputError, InsecureError, RemoteCode, RemoteError
from cutlayer.wire.certificates import create
from cutlayer.wire.handshake import explain
from cutlayer.wire.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMEOUT_S = 10


class Outcome(NamedTuple):
    """What each side got: the peer's common name, or its error."""

    client: str | ssl.SSLError
    server: str | ssl.SSLError


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> Outcome:
    """Connect once, and exchange one byte each way.

    The client reads first: a server's refusal comes with the first read, and a byte sent to a server that has already
    closed would turn it into a reset.
    """
    results: list[str | ssl.SSLError] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT_S)
            results.append(_talk(lambda: server.wrap_socket(connection, server_side=True), speaks_first=True))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(listener.getsockname(), timeout=TIMEOUT_S) as connection:
            mine = _talk(lambda: client.wrap_socket(connection, server_hostname=name), speaks_first=False)
        thread.join()
    return Outcome(mine, results[0])


def _talk(wrap: Callable[[], ssl.SSLSocket], speaks_first: bool) -> str | ssl.SSLError:
    try:
        with wrap() as channel:
            if speaks_first:
                channel.sendall(b"x")
            assert channel.recv(1) == b"x"
            if not speaks_first:
                channel.sendall(b"x")
            assert channel.version() == "TLSv1.3"
            subject = (channel.getpeercert() or {}).get("subject", ())
            return dict(pair for group in subject for pair in group).get("commonName", "")
    except ssl.SSLError as error:
        return error


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create(directory, clients=["client", "alice"])
    return directory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another CA's folders, made by another library."""
    directory = tmp_path_factory.mktemp("foreign")
    authority = trustme.CA()
    for folder, stem, identity in (("server", "server", "localhost"), ("client", "client", "mallory")):
        leaf = authority.issue_cert(identity, common_name=identity)
        (directory / folder).mkdir()
        authority.cert_pem.write_to_path(directory / folder / "ca.pem")
        leaf.cert_chain_pems[0].write_to_path(directory / folder / f"{stem}.pem")
        leaf.private_key_pem.write_to_path(directory / folder / f"{stem}.key")
        (directory / folder / f"{stem}.key").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("expired")
    create(directory, days=1, now=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2))
    return directory


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_both_sides_know_each_other(keys: Path, host: str) -> None:
    outcome = shake(server_context(keys / "server"), client_context(keys / "alice"), host)
    assert outcome == ("localhost", "alice")


def test_certificates_stand_strict_verification(keys: Path) -> None:
    server, client = server_context(keys / "server"), client_context(keys / "client")
    for context in (server, client):
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    assert shake(server, client) == ("localhost", "client")


def test_contexts_are_strict(keys: Path) -> None:
    for context in (server_context(keys / "server"), client_context(keys / "client"), client_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert client_context(keys / "client").check_hostname
    assert client_context().check_hostname


def test_client_trusts_no_other_authority(keys: Path) -> None:
    def trusted(context: ssl.SSLContext) -> list[bytes]:
        return context.get_ca_certs(binary_form=True)

    (authority,) = trusted(client_context(keys / "client"))
    assert trusted(server_context(keys / "server")) == [authority]
    assert ssl.DER_cert_to_PEM_cert(authority).strip() == (keys / "ca" / "ca.pem").read_text().strip()


def test_client_without_certificate_is_refused(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes((keys / "client" / "ca.pem").read_bytes())
    outcome = shake(server_context(keys / "server"), client_context(tmp_path))
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(outcome.server)
    told = explain(outcome.client, "wss://localhost:1")
    assert isinstance(told, RemoteError)
    assert told.code is RemoteCode.UNAUTHORISED
    assert "--keys" in str(told)


def test_client_without_certificate_may_use_a_token_server(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes((keys / "client" / "ca.pem").read_bytes())
    outcome = shake(server_context(keys / "server", require_client_certificate=False), client_context(tmp_path))
    assert outcome == ("localhost", "")


def test_client_of_another_authority_is_refused(keys: Path, foreign: Path) -> None:
    client = client_context(foreign / "client")
    client.load_verify_locations(keys / "client" / "ca.pem")  # it accepts the server; the server must not accept it
    outcome = shake(server_context(keys / "server"), client)
    assert isinstance(outcome.server, ssl.SSLCertVerificationError)
    told = explain(outcome.client, "wss://localhost:1")
    assert isinstance(told, RemoteError)
    assert "another CA" in str(told)


def test_server_of_another_authority_is_refused(keys: Path, foreign: Path) -> None:
    outcome = shake(
        server_context(foreign / "server", require_client_certificate=False), client_context(keys / "client")
    )
    told = explain(outcome.client, "wss://localhost:1")
    assert isinstance(told, InsecureError)
    assert "not from the CA in this client's ca.pem" in str(told)


def test_server_of_another_authority_is_refused_by_the_system_store(foreign: Path) -> None:
    outcome = shake(server_context(foreign / "server", require_client_certificate=False), client_context())
    assert isinstance(explain(outcome.client, "wss://localhost:1"), InsecureError)


def test_other_host_name_is_refused(keys: Path) -> None:
    for name, kind in (("gpu.example", "names"), ("127.0.0.2", "addresses")):
        outcome = shake(server_context(keys / "server"), client_context(keys / "client"), name)
        told = explain(outcome.client, f"wss://{name}:1")
        assert isinstance(told, InsecureError)
        assert f"made for other {kind}" in str(told)


def test_client_certificate_cannot_pose_as_server(keys: Path) -> None:
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(keys / "alice" / "client.pem", keys / "alice" / "client.key")
    outcome = shake(impostor, client_context(keys / "client"))
    told = explain(outcome.client, "wss://localhost:1")
    assert isinstance(told, InsecureError)
    assert "impostor" in str(told)


def test_server_certificate_cannot_pose_as_client(keys: Path) -> None:
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    impostor.load_verify_locations(keys / "server" / "ca.pem")
    impostor.load_cert_chain(keys / "server" / "server.pem", keys / "server" / "server.key")
    outcome = shake(server_context(keys / "server"), impostor)
    assert isinstance(outcome.server, ssl.SSLCertVerificationError)
    assert isinstance(explain(outcome.client, "wss://localhost:1"), RemoteError)


def test_older_tls_is_refused_by_both(keys: Path) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(keys / "client" / "ca.pem")
    assert isinstance(
        shake(server_context(keys / "server", require_client_certificate=False), old).server, ssl.SSLError
    )

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(keys / "server" / "server.pem", keys / "server" / "server.key")
    told = explain(shake(old, client_context(keys / "client")).client, "wss://localhost:1")
    assert isinstance(told, ConnectionLostError)
    assert "no TLS 1.3" in str(told)


def test_expired_server_is_refused_by_the_client(expired: Path) -> None:
    # Its own code would not start it, so a context of the standard library serves the expired certificate.
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(expired / "server" / "server.pem", expired / "server" / "server.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(expired / "client" / "ca.pem")
    told = explain(shake(server, client).client, "wss://localhost:1")
    assert isinstance(told, InsecureError)
    assert "expired" in str(told)
    assert "cutlayer keys create" in str(told)


def test_expired_client_is_refused_by_the_server(keys: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    leaf = authority.issue_cert("alice", not_after=past, not_before=past - datetime.timedelta(days=1))
    server = server_context(keys / "server")
    authority.configure_trust(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(keys / "client" / "ca.pem")
    leaf.configure_cert(client)
    told = explain(shake(server, client).client, "wss://localhost:1")
    assert isinstance(told, RemoteError)
    assert "expired" in str(told)


@pytest.mark.parametrize("build", [lambda d: server_context(d / "server"), lambda d: client_context(d / "client")])
def test_own_expired_certificate_is_named(expired: Path, build: Callable[[Path], ssl.SSLContext]) -> None:
    with pytest.raises(InputError, match=r"\.pem expired on 20..-..-.. ..:.. UTC; make new ones"):
        build(expired)


def test_own_certificate_of_the_future_is_named(tmp_path: Path) -> None:
    create(tmp_path, now=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2))
    with pytest.raises(InputError, match="check the clocks"):
        server_context(tmp_path / "server")


def test_missing_and_mixed_files_are_named(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"server\.pem does not exist; `cutlayer keys create"):
        server_context(tmp_path)
    with pytest.raises(InputError, match=r"ca\.pem does not exist"):
        client_context(tmp_path)
    with pytest.raises(InputError, match="the server's folder"):
        client_context(keys / "server")

    create(tmp_path)
    (tmp_path / "client" / "client.key").write_bytes((keys / "client" / "client.key").read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        client_context(tmp_path / "client")
    (tmp_path / "client" / "client.key").unlink()
    with pytest.raises(InputError, match=r"client\.key does not exist"):
        client_context(tmp_path / "client")


def test_unusable_files_are_named(keys: Path, tmp_path: Path) -> None:
    create(tmp_path)
    key = tmp_path / "server" / "server.key"
    key.chmod(0o644)
    with pytest.raises(InsecureError, match=r"0644.*chmod 600"):
        server_context(tmp_path / "server")
    key.chmod(0o600)

    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    key.write_bytes(loaded.private_bytes(*form, encryption))
    with pytest.raises(InputError, match="is encrypted"):
        server_context(tmp_path / "server")

    key.write_text("-----BEGIN PRIVATE KEY-----\nsecretsecret\n-----END PRIVATE KEY-----\n")
    with pytest.raises(InputError, match="holds no PEM private key") as caught:
        server_context(tmp_path / "server")
    assert "secretsecret" not in str(caught.value)

    (tmp_path / "client" / "ca.pem").write_text("nothing")
    with pytest.raises(InputError, match=r"ca\.pem holds no PEM certificate"):
        client_context(tmp_path / "client")


def test_server_without_tls_is_recognised(keys: Path) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), timeout=TIMEOUT_S) as connection,
            pytest.raises(ssl.SSLError) as caught,
        ):
            client_context(keys / "client").wrap_socket(connection, server_hostname="localhost")
        thread.join()
    assert "answers without TLS" in str(explain(caught.value, "wss://localhost:1"))
