"""TLS settings of both sides: version 1.3, names checked, certificates of our own CA.

A folder is one side's, as `cutlayer.wire.certificates` lays it out: ``ca.pem`` with ``server.pem`` and ``server.key``, or
with ``client.pem`` and ``client.key``. Files are checked here, before OpenSSL sees them: its errors name neither the file
nor the remedy, and it would ask at the terminal for the password of an encrypted key.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from cutlayer.errors import InputError
from cutlayer.wire.pem import check_pair, check_validity, read_certificates, read_key
from cutlayer.wire.policy import listen_policy, url_policy
from cutlayer.wire.token import read_token_file
from cutlayer.wire.token_book import TokenBook, read_token_book

if TYPE_CHECKING:
    from pathlib import Path

# One door for what decides who may talk to whom.
__all__ = [
    "TokenBook",
    "client_context",
    "listen_policy",
    "load_pair",
    "read_token_book",
    "read_token_file",
    "server_context",
    "url_policy",
]


def server_context(directory: Path, require_client_certificate: bool = True) -> ssl.SSLContext:
    """TLS settings of a server.

    Args:
        directory: holds ``server.pem`` and ``server.key``, and ``ca.pem`` of the clients' CA.
        require_client_certificate: mutual TLS. Without it, clients must be known by a token.

    Raises:
        InputError: a file is missing, unreadable, expired, or does not belong to the others.
        InsecureError: others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nothing here resumes TLS sessions; a ticket would only let an observer link a client's connections.
    context.num_tickets = 0
    load_pair(context, directory / "server.pem", directory / "server.key")
    if require_client_certificate:
        _load_authorities(context, directory)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(directory: Path | None = None) -> ssl.SSLContext:
    """TLS settings of a client.

    Args:
        directory: holds ``ca.pem`` of the server's CA (no other is trusted then), and ``client.pem`` and ``client.key``
            unless the client is known by a token. None trusts the CAs of this machine and has no certificate.

    Raises:
        InputError: a file is missing, unreadable, expired, or does not belong to the others.
        InsecureError: others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if directory is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    _load_authorities(context, directory)
    if (directory / "client.pem").exists() or (directory / "client.key").exists():
        load_pair(context, directory / "client.pem", directory / "client.key")
    elif (directory / "server.key").exists():
        raise InputError(f"{directory} is the server's folder; give the client's, e.g. {directory.parent / 'client'}")
    return context


def load_pair(context: ssl.SSLContext, file: Path, key_file: Path) -> None:
    """Have `context` present the certificate in `file`, which may bring its chain.

    Raises:
        InputError: a file is missing, unreadable, expired, or the two do not belong together.
        InsecureError: others can read the key.
    """
    certificate, key = read_certificates(file)[0], read_key(key_file)
    check_validity(certificate, file)
    check_pair(certificate, key, file)
    try:
        context.load_cert_chain(file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{file} cannot be used for TLS: {error}") from error


def _load_authorities(context: ssl.SSLContext, directory: Path) -> None:
    file = directory / "ca.pem"
    for certificate in read_certificates(file):
        check_validity(certificate, file)
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{file} cannot be used as certificate authority: {error}") from error
