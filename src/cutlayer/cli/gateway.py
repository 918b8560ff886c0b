"""`cutlayer gateway`: OpenAI's interface on this machine, in front of a model that runs elsewhere, split or obfuscated."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cutlayer.cli.address import parse_address
from cutlayer.cli.client_options import ConnectOptions
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.client.connect import Options
    from cutlayer.gateway.served import Served
    from cutlayer.gateway.settings import Resolved, Settings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """Every setting as a flag. What is not given comes from the environment, then the file, then the default."""

    server: str | None = None
    """URL of the server: wss://HOST:PORT, or ws://HOST:PORT on loopback. This or --upstream is needed."""
    upstream: tuple[str, str] | None = None
    """Instead of a server, an engine with an obfuscated model: vllm, llamacpp or sglang, and its URL, https://HOST:PORT or
    http://HOST:PORT on loopback. Needs --key, and --model for the plain model's tokenizer."""
    key: str | None = None
    """The client's key file of the obfuscated model."""
    passphrase_file: str | None = None
    """File with that key file's passphrase, mode 0600 (default: ask)."""
    listen: str | None = None
    """HOST:PORT (default 127.0.0.1:8411). Beyond loopback, TLS and API keys are required. Port 0 picks a free one."""
    name: str | None = None
    """What clients call the model (default: its directory's name)."""
    model: str | None = None
    """Local model (default: the pulled model of the server's name)."""
    cut: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Insist on this cut A:B (default: the server's)."""
    keys: str | None = None
    """Directory with ca.pem, client.pem and client.key, for the server."""
    token: str | None = None
    """File with the bearer token the server wants."""
    dtype: str | None = None
    """float32, bfloat16 or float16 (default: the server's)."""
    codec: str | None = None
    """How hidden states travel: fp32, bf16, fp16, int8 or int4 (default: as the dtype)."""
    device: str | None = None
    """Where this side's layers run (default cpu)."""
    defence: str | None = None
    """What is done to hidden states before they leave (default none)."""
    speculate: str | None = None
    """Guess at the next tokens: auto, off, lookup, … (default auto over 10 ms and more; off nearer by and under a defence)."""
    pad_drafts: int | None = None
    """Rows every step of an answer carries; 0 sends as many as pay (default 0)."""
    sessions: int | None = None
    """Sessions on the server, each answering one request at a time (default 4)."""
    queue: int | None = None
    """Requests of one API key that may wait for a session (default 16)."""
    max_tokens: int | None = None
    """A chat answer's longest length when the request names none (default 1024)."""
    max_body: int | None = None
    """Bytes of a request's body (default 4194304)."""
    body_timeout: float | None = None
    """Seconds a request's body may take to arrive (default 30)."""
    ping: float | None = None
    """Seconds of silence after which a stream gets a keep-alive comment (default 15)."""
    grace: float | None = None
    """Seconds that answers in progress get to finish when the gateway is stopped (default 10)."""
    recover: float | None = None
    """Seconds a lost server has to come back before a request fails with 503 (default 20)."""
    silence: float | None = None
    """Seconds an upstream has for the next token before a request fails with 504 (default 120)."""
    api_keys: str | None = None
    """File with one NAME KEY or NAME sha256:HEX per line, readable by its owner alone."""
    tls_cert: str | None = None
    """PEM file with the gateway's certificate chain."""
    tls_key: str | None = None
    """PEM file with its key, readable by its owner alone."""
    allow_origin: Annotated[list[str] | None, Parameter(negative=())] = None
    """A site whose web pages may use the gateway, e.g. http://localhost:3000; may be given several times."""
    allow_host: Annotated[list[str] | None, Parameter(negative=())] = None
    """A further name, without port, by which the gateway may be addressed; may be given several times."""
    config: Path | None = None
    """TOML file with the same settings (default ~/.config/cutlayer/gateway.toml, if there is one). Flags come before
    environment variables (CUTLAYER_SERVER, CUTLAYER_LISTEN, …), these before the file, and the file before defaults."""

    def resolved(self) -> Resolved:
        """With environment, file and defaults."""
        from cutlayer.gateway.settings import resolve

        flags = asdict(self)
        return resolve(flags, os.environ, flags.pop("config"))


@dataclass(frozen=True, kw_only=True)
class _Connect(ConnectOptions):
    recover: float

    def options(self) -> Options:
        import msgspec

        from cutlayer.client.remote import Patience

        return msgspec.structs.replace(super().options(), patience=Patience(recover_s=self.recover))


_NOTHING_GIVEN = GatewayOptions()


def gateway(*, options: GatewayOptions = _NOTHING_GIVEN, ready_file: Path | None = None) -> int:
    """Serve OpenAI's interface: point any client at it, and prompts stop leaving this machine.

    Flags come before environment variables (CUTLAYER_SERVER, CUTLAYER_LISTEN, …), these before the settings file, and
    that before defaults. `cutlayer config show` prints what is in effect and why.

    Parameters
    ----------
    options
        Settings.
    ready_file
        Written with the base URL once requests are accepted; for scripts.
    """
    try:
        settings = options.resolved().settings
        host, port = parse_address(settings.listen)
        connect = _source(settings)
        from cutlayer.gateway.access import listen_policy
        from cutlayer.gateway.body import BodyLimits
        from cutlayer.gateway.listen import Address, serve, tls_context
        from cutlayer.gateway.service import Gateway, Limits
        from cutlayer.wire.token_book import read_token_book
    except ModuleNotFoundError as error:
        raise InputError(f"the gateway needs {error.name}; pip install 'cutlayer[gateway]'") from error
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("--tls-cert and --tls-key go together")
    # Before anything is loaded: a wrong address or key file is known at once.
    listen_policy(host, settings.tls_cert is not None, settings.api_keys is not None)
    keys = read_token_book(Path(settings.api_keys)) if settings.api_keys else None
    tls = (
        tls_context(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert and settings.tls_key else None
    )
    limits = Limits(
        sessions=settings.sessions,
        queue=settings.queue,
        max_tokens=settings.max_tokens,
        body=BodyLimits(settings.max_body, settings.body_timeout),
        ping_s=settings.ping,
        grace_s=settings.grace,
    )
    service = Gateway(connect(), limits, settings.name)

    def ready(url: str) -> None:
        sys.stdout.write(f"{url} serves {service.model}. {service.statement}\n")
        sys.stdout.flush()
        if ready_file is not None:
            ready_file.write_text(f"{url}\n", encoding="utf-8")

    address = Address(host=host, port=port, names=tuple(settings.allow_host), origins=tuple(settings.allow_origin))
    serve(service, address, keys=keys, tls=tls, ready=ready)
    return 0


def _source(settings: Settings) -> Callable[[], Served]:
    """What connects to the model. Refuses, before anything is loaded, two ways to run it, none, and settings of the other."""
    server, upstream, key, model = settings.server, settings.upstream, settings.key, settings.model
    if server is not None and upstream is None:
        _refuse_foreign("--server", {"--key": key, "--passphrase-file": settings.passphrase_file})
        return lambda: _split(settings, server)
    if upstream is None or server is not None:
        raise InputError(
            "say where the model runs, here or in the settings file: --server wss://HOST:PORT if `cutlayer serve` runs middle "
            "layers, or --upstream ENGINE URL if it is obfuscated; one of the two"
        )
    if key is None or model is None:
        raise InputError("--upstream needs --key FILE, the client's, and --model BASE, which the export was made from")
    drafts = str(settings.pad_drafts) if settings.pad_drafts else None
    defence = settings.defence if settings.defence != "none" else None
    split_only = {"--cut": settings.cut, "--dtype": settings.dtype, "--codec": settings.codec, "--defence": defence}
    _refuse_foreign("--upstream", split_only | {"--speculate": settings.speculate, "--pad-drafts": drafts})
    return lambda: _obfuscated(settings, upstream, Path(key), model)


def _refuse_foreign(way: str, given: dict[str, str | None]) -> None:
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag} does nothing with {way}; leave it out, here and in the settings file")


def _split(settings: Settings, server: str) -> Served:
    from cutlayer.gateway.split import split

    return split(_connect(settings, server).connect())


def _obfuscated(settings: Settings, upstream: tuple[str, str], key: Path, model: str) -> Served:
    from cutlayer.cli.passphrase import read_passphrase
    from cutlayer.gateway.upstream.obfuscated import obfuscated
    from cutlayer.models.locate import locate
    from cutlayer.obfuscation.keyfile import MAX_KEY_BYTES, open_client_key
    from cutlayer.wire.private_files import read_private
    from cutlayer.wire.tls import client_context, read_token_file

    passphrase = read_passphrase(Path(settings.passphrase_file) if settings.passphrase_file else None, new=False)
    return obfuscated(
        *upstream,
        open_client_key(read_private(key, MAX_KEY_BYTES), passphrase),
        locate(model),
        tls=client_context(Path(settings.keys) if settings.keys else None),
        token=read_token_file(Path(settings.token)) if settings.token else None,
        silence_s=settings.silence,
    )


def _connect(settings: Settings, server: str) -> ConnectOptions:
    return _Connect(
        server=server,
        model=settings.model,
        cut=settings.cut,
        keys=Path(settings.keys) if settings.keys else None,
        token=Path(settings.token) if settings.token else None,
        dtype=settings.dtype,
        codec=settings.codec,
        device=settings.device,
        defence=settings.defence,
        speculate=settings.speculate,
        pad_drafts=settings.pad_drafts,
        recover=settings.recover,
    )
