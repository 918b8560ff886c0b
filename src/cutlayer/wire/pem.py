"""Reading certificates and keys from PEM files, with errors that name the file and the remedy."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cutlayer.errors import InputError
from cutlayer.wire.private_files import read_private

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


def read_certificates(file: Path) -> list[x509.Certificate]:
    """All certificates in `file`, at least one.

    Raises:
        InputError: missing, unreadable, or no certificates.
    """
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist; `cutlayer keys create DIR` makes certificates, and the folder to give is that of one "
            "side, e.g. DIR/server or DIR/client"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} holds no PEM certificate: {error}") from None


def read_key(file: Path) -> PrivateKeyTypes:
    """The private key in `file`.

    Raises:
        InputError: missing, unreadable, encrypted, or no key.
        InsecureError: others can read it.
    """
    content = read_private(file)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise InputError(f"the key in {file} is encrypted; store it decrypted with mode 0600") from None
    except (ValueError, UnsupportedAlgorithm):
        # The cause may quote what it could not parse, which is a secret.
        raise InputError(f"{file} holds no PEM private key") from None


def check_validity(certificate: x509.Certificate, file: Path) -> None:
    """Refuse a certificate that does not count now.

    Raises:
        InputError: expired or not yet valid.
    """
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise InputError(
            f"the certificate {file} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "make new ones with `cutlayer keys create NEWDIR` and copy them to server and clients"
        )
    if now < certificate.not_valid_before_utc:
        raise InputError(
            f"the certificate {file} counts only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
            f"it is {now:%Y-%m-%d %H:%M} UTC here, check the clocks"
        )


def check_pair(certificate: x509.Certificate, key: PrivateKeyTypes, file: Path) -> None:
    """Refuse a certificate and a key that do not belong together.

    Raises:
        InputError: `key` is not that of `certificate`.
    """
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise InputError(
            f"{file} and {file.with_suffix('.key').name} beside it do not belong together; "
            "copy the whole folder made by `cutlayer keys` again"
        )
