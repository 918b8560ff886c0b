"""X.509 certificates of a small private CA: what is in them, nothing about files.

Elliptic-curve P-256 throughout: every TLS 1.3 stack and browser takes it (not so Ed25519). Every certificate says what it
is for, so that a client's certificate cannot pose as a server's, nor the reverse.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cutlayer.errors import InputError

if TYPE_CHECKING:
    import datetime
    from collections.abc import Sequence

_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_COMMON_NAME_LIMIT: Final = 64
"""Of RFC 5280, appendix A.1."""


class Issued(NamedTuple):
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Validity(NamedTuple):
    """When a certificate counts."""

    begins: datetime.datetime
    ends: datetime.datetime


def issue_authority(validity: Validity) -> Issued:
    """A new certificate authority that may sign certificates of servers and clients, but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own per CA: with two of one name, OpenSSL reports a bad signature instead of an unknown issuer.
    name = _name(f"cutlayer CA {x509.random_serial_number():x}"[:20])
    builder = _builder(name, name, key.public_key(), validity)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Issued(_sign(builder, key, key.public_key()), key)


def issue_server(authority: Issued, hosts: Sequence[str], validity: Validity) -> Issued:
    """A server's certificate for `hosts`, each a DNS name or an IP address.

    Raises:
        InputError: no hosts, or one is neither.
    """
    if not hosts:
        raise InputError("a server certificate needs at least one host name or address that clients will connect to")
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    common_name = hosts[0] if len(hosts[0]) <= _COMMON_NAME_LIMIT else "server"
    return _issue_leaf(authority, common_name, validity, ExtendedKeyUsageOID.SERVER_AUTH, names)


def issue_client(authority: Issued, name: str, validity: Validity) -> Issued:
    """A client's certificate; the server knows the client by `name`, its common name."""
    return _issue_leaf(authority, name, validity, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def _issue_leaf(
    authority: Issued,
    common_name: str,
    validity: Validity,
    usage: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common_name), authority.certificate.subject, key.public_key(), validity)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return Issued(_sign(builder, authority.key, authority.key.public_key()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.begins)
        .not_valid_after(validity.ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    # Python 3.13 verifies strictly by RFC 5280 and wants the issuer's key identifier.
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # All digits is a mistyped address, not a name.
        if _DNS_NAME.fullmatch(host.lower()) and not host.replace(".", "").isdigit():
            return x509.DNSName(host.lower())
    else:
        if "%" not in host:  # a zone means something on one machine only, and certificates cannot hold it
            return x509.IPAddress(address)
    raise InputError(
        f"{host!r} is neither a DNS name nor an IP address; give the bare host, without scheme, port or brackets "
        "(a non-ASCII name in its xn-- form)"
    )
