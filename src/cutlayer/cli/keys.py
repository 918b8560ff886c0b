"""`cutlayer keys`: certificates and tokens by which server and clients know each other, and keys of obfuscated models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from cutlayer.wire.certificates import CertificateInfo

app = App(name="keys", help="Create and inspect certificates of client and server; inspect keys of obfuscated models.")


@app.command
def create(
    directory: Path,
    /,
    *,
    host: Annotated[tuple[str, ...], Parameter(negative="", show_default=" ".join)] = ("localhost", "127.0.0.1", "::1"),
    client: Annotated[tuple[str, ...], Parameter(negative="", show_default=" ".join)] = ("client",),
    days: int = 365,
) -> int:
    """Create a certificate authority, and certificates of a server and its clients.

    Args:
        directory: where to put them; nothing there is overwritten.
        host: DNS name or IP address under which clients reach the server; may be repeated.
        client: name of a client, which gets a folder of that name; may be repeated.
        days: how long all of them count.
    """
    from cutlayer.wire.certificates import create as create_certificates

    made = create_certificates(directory, host, client, days)
    _show(made)
    folders = " ".join(f"{directory / name}" for name in client)
    sys.stdout.write(
        f"\nTo the server:  {directory / 'server'}   (cutlayer serve … --keys {directory / 'server'})\n"
        f"To the clients: {folders or 'none'}   (cutlayer generate … --keys FOLDER)\n"
        f"Keep here:      {directory / 'ca'}   Whoever has ca.key can pose as the server and as every client.\n"
        "The *.key files are secret and not encrypted; copy them over protected channels only.\n"
    )
    return 0


@app.command(name="add-client")
def add_client(directory: Path, name: str, /) -> int:
    """Issue the certificate of one more client.

    Args:
        directory: made by `cutlayer keys create`.
        name: of the client; the server knows it by this name.
    """
    from cutlayer.wire.certificates import add_client as issue

    _show((issue(directory, name),))
    sys.stdout.write(f"\nTo the client: {directory / name}\n")
    return 0


@app.command
def show(directory: Path, /, *, json: bool = False) -> int:
    """List certificates: names, last day and fingerprint. No secret is read or shown.

    Args:
        directory: made by `cutlayer keys create`, or one side's folder of it.
        json: print one JSON list instead of a table.
    """
    from cutlayer.wire.certificates import inspect

    found = inspect(directory)
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _show(found)
    return 0


@app.command
def token(file: Path, /) -> int:
    """Write a new random token for server and clients that do without client certificates.

    Args:
        file: must not exist; only its owner will be able to read it.
    """
    from cutlayer.wire.token import create_token_file

    create_token_file(file)
    sys.stdout.write(f"wrote {file} (mode 0600); give the same file to server and client with --token {file}\n")
    return 0


@app.command(name="inspect")
def inspect_key(file: Path, /, *, json: bool = False) -> int:
    """Show what a key file of an obfuscated model says openly: whose, for which model, how made. Needs no passphrase.

    Args:
        file: owner.key or client.key, made by `cutlayer obfuscate`.
        json: print one JSON object instead of lines.
    """
    import msgspec

    from cutlayer.obfuscation.keyfile import MAX_KEY_BYTES, read_header
    from cutlayer.wire.private_files import read_private

    header = read_header(read_private(file, MAX_KEY_BYTES))
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(header), indent=2).decode() + "\n")
        return 0
    settings = header.settings
    lines = {
        "kind": f"{header.kind}'s key",
        "key id": header.key_id,
        "created": header.created,
        "vocabulary": f"{header.vocabulary} token ids",
        "base": f"model with fingerprint {header.base}",
        "sealed": f"{header.cipher}, {header.kdf.name} n={header.kdf.n}",
    }
    if settings is not None:
        lines["mode"] = f"{settings.mode}, hidden size {settings.hidden_size}, {settings.dtype}"
        lines["noise"] = f"alpha_e {settings.alpha_e:g}, alpha_h {settings.alpha_h:g}"
    width = max(map(len, lines))
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in lines.items())
    return 0


def _show(certificates: tuple[CertificateInfo, ...]) -> None:
    import datetime
    import math

    from rich.console import Console

    now = datetime.datetime.now(datetime.UTC)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for certificate in certificates:
        left = math.ceil((certificate.ends - now) / datetime.timedelta(days=1))
        when = f"{certificate.ends:%Y-%m-%d}, " + (f"{left} days left" if certificate.ends > now else "EXPIRED")
        console.print(f"{certificate.file}   {certificate.role} {certificate.subject!r}")
        if certificate.names:
            console.print(f"    hosts    {', '.join(certificate.names)}")
        console.print(f"    until    {when}")
        console.print(f"    SHA-256  {certificate.sha256}")
