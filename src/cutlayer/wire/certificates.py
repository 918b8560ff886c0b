"""A private CA on disk: who may serve, who may connect.

    DIR/ca/      ca.pem  ca.key                    stays on the trusted machine: whoever has ca.key can pose as anyone
    DIR/server/  ca.pem  server.pem  server.key    goes to the server
    DIR/NAME/    ca.pem  client.pem  client.key    goes to the client of that name

All certificates of a directory end on the same day; then make a new directory. Keys are not encrypted: their protection
is mode 0600. Nothing is ever overwritten.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cutlayer.errors import InputError
from cutlayer.wire.issue import Issued, Validity, issue_authority, issue_client, issue_server
from cutlayer.wire.pem import check_pair, check_validity, read_certificates, read_key
from cutlayer.wire.private_files import PUBLIC, write_new

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
DEFAULT_CLIENTS: Final = ("client",)
DEFAULT_DAYS: Final = 365
MAX_DAYS: Final = 3650

_CLOCK_SKEW: Final = datetime.timedelta(hours=1)
"""Certificates begin in the past: a peer whose clock is behind would refuse them otherwise."""
_CLIENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED: Final = frozenset({"ca", "server"})


class CertificateInfo(msgspec.Struct, frozen=True):
    """What a certificate says; nothing in it is secret.

    Attributes:
        file: path below the inspected directory.
        role: what it may be used for.
        subject: common name.
        names: hosts it is valid for, of a server's certificate.
        begins: first moment of validity, UTC.
        ends: last moment of validity, UTC.
        sha256: fingerprint of the certificate, hexadecimal.
    """

    file: str
    role: Literal["authority", "server", "client", "other"]
    subject: str
    names: tuple[str, ...]
    begins: datetime.datetime
    ends: datetime.datetime
    sha256: str


def create(
    directory: Path,
    hosts: Sequence[str] = DEFAULT_HOSTS,
    clients: Sequence[str] = DEFAULT_CLIENTS,
    days: int = DEFAULT_DAYS,
    *,
    now: datetime.datetime | None = None,
) -> tuple[CertificateInfo, ...]:
    """Create a CA, a server's certificate and clients' certificates below `directory`.

    Args:
        directory: made if it is not there.
        hosts: DNS names and IP addresses under which clients reach the server.
        clients: names of clients, each a folder of that name.
        days: how long all of them count.
        now: the present, for tests.

    Raises:
        InputError: there is a CA already, a value is invalid, or a file cannot be written.
    """
    if not 1 <= days <= MAX_DAYS:
        raise InputError(f"certificates for {days} days; give 1 to {MAX_DAYS}")
    if len(set(clients)) != len(clients):
        raise InputError(f"client names {', '.join(clients)} are not all different")
    for name in clients:
        _check_name(name)
    for taken in ("ca", "server", *clients):
        if (directory / taken).exists():
            raise InputError(
                f"{directory / taken} exists; nothing is overwritten. Add a client with "
                f"`cutlayer keys add-client {directory} NAME`, or create in another directory"
            )
    moment = now or datetime.datetime.now(datetime.UTC)
    validity = Validity(moment - _CLOCK_SKEW, moment + datetime.timedelta(days=days))
    # All of it is made before the first file is written: a wrong host leaves nothing behind.
    authority = issue_authority(validity)
    server = issue_server(authority, hosts, validity)
    issued = {name: issue_client(authority, name, validity) for name in clients}

    _write(directory / "ca", "ca", authority, None)
    _write(directory / "server", "server", server, authority.certificate)
    for name, client in issued.items():
        _write(directory / name, "client", client, authority.certificate)
    return inspect(directory)


def add_client(directory: Path, name: str) -> CertificateInfo:
    """Issue one more client's certificate; it ends with the CA.

    Raises:
        InputError: no usable CA in `directory`, the name is invalid or taken.
        InsecureError: others can read the CA's key.
    """
    _check_name(name)
    if (directory / name).exists():
        raise InputError(f"{directory / name} exists and is never overwritten; choose another name")
    file = directory / "ca" / "ca.pem"
    if not file.is_file():
        raise InputError(
            f"{directory} holds no CA ({file} is missing); create one with `cutlayer keys create {directory}`"
        )
    certificate = read_certificates(file)[0]
    check_validity(certificate, file)
    key = read_key(file.with_suffix(".key"))
    check_pair(certificate, key, file)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(
            f"{file.with_suffix('.key')} is no elliptic-curve key; only CAs made by `cutlayer keys` can be used"
        )
    begins = datetime.datetime.now(datetime.UTC) - _CLOCK_SKEW
    authority = Issued(certificate, key)
    client = issue_client(authority, name, Validity(begins, certificate.not_valid_after_utc))
    _write(directory / name, "client", client, certificate)
    return _describe(directory / name / "client.pem", directory)


def inspect(directory: Path) -> tuple[CertificateInfo, ...]:
    """Describe the certificates of a whole directory or of one side's folder. Keys are not opened.

    Raises:
        InputError: none there, or one is unreadable.
    """
    patterns = ("ca/ca.pem", "*/server.pem", "*/client.pem", "ca.pem", "server.pem", "client.pem")
    files = [file for pattern in patterns for file in sorted(directory.glob(pattern))]
    if not files:
        raise InputError(f"{directory} holds no certificates; create some with `cutlayer keys create {directory}`")
    return tuple(_describe(file, directory) for file in files)


def _describe(file: Path, directory: Path) -> CertificateInfo:
    certificate = read_certificates(file)[0]
    extensions = {extension.oid: extension.value for extension in certificate.extensions}
    names = extensions.get(x509.SubjectAlternativeName.oid)
    return CertificateInfo(
        file=str(file.relative_to(directory)),
        role=_role(certificate),
        subject=certificate.subject.rfc4514_string().removeprefix("CN="),
        names=tuple(str(name.value) for name in names) if isinstance(names, x509.SubjectAlternativeName) else (),
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _role(certificate: x509.Certificate) -> Literal["authority", "server", "client", "other"]:
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return "authority"
        if isinstance(value, x509.ExtendedKeyUsage):
            if ExtendedKeyUsageOID.SERVER_AUTH in value:
                return "server"
            if ExtendedKeyUsageOID.CLIENT_AUTH in value:
                return "client"
    return "other"


def _check_name(name: str) -> None:
    if name.lower() in _RESERVED or not _CLIENT_NAME.fullmatch(name):
        raise InputError(
            f"client name {name!r} is invalid: 1 to 64 letters, digits, dots, dashes and underscores, beginning with a "
            "letter or digit; 'ca' and 'server' are taken"
        )


def _write(folder: Path, stem: str, issued: Issued, authority: x509.Certificate | None) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(f"cannot create {folder}: {error.strerror}") from error
    encoding = serialization.Encoding.PEM
    key = issued.key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_new(folder / f"{stem}.key", key)
    write_new(folder / f"{stem}.pem", issued.certificate.public_bytes(encoding), PUBLIC)
    if authority is not None:
        write_new(folder / "ca.pem", authority.public_bytes(encoding), PUBLIC)
