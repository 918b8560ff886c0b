"""An obfuscated model, as a gateway serves it: key, base model and engine, found to belong together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cutlayer.errors import KeyFileError, UnknownNameError
from cutlayer.gateway.served import Served
from cutlayer.gateway.upstream.host import Host
from cutlayer.gateway.upstream.llamacpp import LlamaCpp
from cutlayer.gateway.upstream.session import NoSchemas, UpstreamSession
from cutlayer.gateway.upstream.sglang import SgLang
from cutlayer.gateway.upstream.translation import Translation
from cutlayer.gateway.upstream.vllm import Vllm
from cutlayer.models.checkpoint import INDEX, SINGLE
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint
from cutlayer.obfuscation.marker import MARKER, read_marker
from cutlayer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import ssl

    from cutlayer.gateway.upstream.dialect import About, Dialect
    from cutlayer.obfuscation.keys import ClientKey
    from cutlayer.types import Secret

DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in (Vllm(), LlamaCpp(), SgLang())}
SILENCE_S: Final = 120.0
_STATEMENT: Final = (
    "The host sees permuted token ids. If it has, or can guess, the public base model, it can undo the permutation from the "
    "weights; long logs give it away by frequency."
)
_KEY_ID: Final = re.compile(r"[0-9a-f]{32}")


def obfuscated(
    engine: str,
    url: str,
    key: ClientKey,
    base: Path,
    *,
    tls: ssl.SSLContext | None = None,
    token: Secret | None = None,
    silence_s: float = SILENCE_S,
) -> Served:
    """Connect to an engine.

    Args:
        engine: one of `DIALECTS`.
        url: where it listens.
        key: of the export it serves.
        base: directory of the plain model, for tokenizer and chat template. Its weights are not needed; where they are, it is
            checked that the key is for them.
        tls: see `Host`, as the rest.
        token: bearer token.
        silence_s: for the next token.

    Raises:
        KeyFileError: key, base model and engine do not belong together.
        UnknownNameError: no such engine.
        InputError, InsecureError: a URL that is none or unprotected.
        WireError: the engine does not answer, or is another one.
        ModelNotFoundError, UnsupportedModelError: `base` is unusable.
    """
    dialect = DIALECTS.get(engine)
    if dialect is None:
        raise UnknownNameError(f"no upstream engine is called {engine!r}; there are: {', '.join(DIALECTS)}")
    config = read_config(base)
    _check_base(key, base, config.vocab_size)
    host = Host(url, tls, token, silence_s)
    about = dialect.about(host.exchange().body)
    _check_export(key, about, host.loopback)
    tokenizer = Tokenizer(base)
    positions: int = min(config.max_position_embeddings, about.positions or config.max_position_embeddings)
    session = UpstreamSession(
        host,
        dialect,
        Translation(key, about.name),
        tokenizer,
        tokenizer.stop_ids | set(key.identity.stop_ids),
        positions,
    )
    return Served(
        session=session,
        name=base.name,
        tokenizer=tokenizer,
        schemas=NoSchemas(),
        vocabulary=config.vocab_size,
        max_positions=positions - 1,  # the last token of an answer is not sent
        fingerprint=key.identity.key_id,
        cut=f"none: obfuscated in {dialect.name}",
        defence="permuted token ids",
        statement=_STATEMENT,
    )


def _check_base(key: ClientKey, base: Path, vocabulary: int) -> None:
    if vocabulary != key.identity.vocabulary:
        raise KeyFileError(
            f"this key is for a vocabulary of {key.identity.vocabulary}, and {base.name} has {vocabulary}; name by --model the "
            "one that the export was made from"
        )
    weights = any((base / file).exists() for file in (SINGLE, INDEX))
    if weights and fingerprint(base) != key.identity.base:
        raise KeyFileError(
            f"this key is for another model than the one in {base}; name the model the export was made from by --model"
        )


def _check_export(key: ClientKey, about: About, loopback: bool) -> None:
    """Refuse another export, as far as an engine says what it serves: by a key id in the model's name, by the directory where
    that is this machine's, by the vocabulary."""
    if loopback and about.directory is not None and (Path(about.directory) / MARKER).is_file():
        key.check(read_marker(Path(about.directory)))
    named = _KEY_ID.findall(about.name)
    if named and key.identity.key_id not in named:
        raise KeyFileError(
            f"this key is {key.identity.key_id}, and the engine's model is named after key {named[0]}; use the key of that export"
        )
    if about.vocabulary not in (None, key.identity.vocabulary):
        raise KeyFileError(
            f"this key is for a vocabulary of {key.identity.vocabulary}, and the engine's model has {about.vocabulary}"
        )
