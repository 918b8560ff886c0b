"""Key files: owner and client keys as bytes that a passphrase opens.

    magic   8 bytes   "cutlkey" and the version, 1
    length  4 bytes   of the header, little-endian
    header  JSON      what may be shown (`Header`); authenticated, not encrypted
    sealed            AES-256-GCM under scrypt(passphrase): the seed of an owner, τ as little-endian uint32[V] of a client

Nothing here touches files: write the bytes with `cutlayer.wire.private_files.write_new` and read them with `read_private`.

Notation: V vocabulary.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cutlayer.errors import InputError, KeyFileError
from cutlayer.obfuscation.keys import ClientKey, Identity, OwnerKey
from cutlayer.obfuscation.settings import Settings
from cutlayer.obfuscation.stream import SEED_BYTES
from cutlayer.obfuscation.tau import frozen
from cutlayer.types import Secret

if TYPE_CHECKING:
    from cutlayer.obfuscation.tau import Ids

MAGIC: Final = b"cutlkey\x01"

MAX_HEADER: Final = 1 << 16
MAX_VOCABULARY: Final = 1 << 22
MAX_KEY_BYTES: Final = len(MAGIC) + 4 + MAX_HEADER + 4 * MAX_VOCABULARY + 16
"""No key file is longer."""

COST: Final = 1 << 17
"""scrypt's n: 128 MiB and about a second per guess."""

_TAG: Final = 16
_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Kdf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the passphrase becomes a key.

    Args:
        salt: 16 bytes, hexadecimal.
        n: cost, a power of two; bounded, since a header is read before anything proves where it is from.
        name: the only one there is.
        r: block size.
        p: parallelism.
    """

    salt: _Id
    n: Annotated[int, msgspec.Meta(ge=1 << 14, le=1 << 18)] = COST
    name: Literal["scrypt"] = "scrypt"
    r: Literal[8] = 8
    p: Literal[1] = 1


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What stands in a key file openly.

    Args:
        kind: whose key.
        key_id: the export's.
        created: when the key was made.
        vocabulary: V.
        base: fingerprint of the model it was made for.
        weights: digest of that model's files.
        stop_ids: plain ids that end an answer.
        kdf: how the passphrase becomes a key.
        nonce: 12 bytes, hexadecimal.
        settings: of the export; in an owner's key only.
        cipher: the only one there is.
    """

    kind: Literal["owner", "client"]
    key_id: _Id
    created: str
    vocabulary: Annotated[int, msgspec.Meta(ge=1, le=MAX_VOCABULARY)]
    base: str
    weights: str
    stop_ids: tuple[Annotated[int, msgspec.Meta(ge=0, lt=MAX_VOCABULARY)], ...]
    kdf: Kdf
    nonce: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{24}$")]
    settings: Settings | None = None
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"

    @property
    def identity(self) -> Identity:
        """The part that a key in memory keeps."""
        return Identity(**{name: getattr(self, name) for name in Identity.__struct_fields__})


def seal(key: OwnerKey | ClientKey, passphrase: Secret, *, cost: int = COST) -> bytes:
    """A key as the content of a key file.

    Args:
        key: of an owner or a client.
        passphrase: opens it again.
        cost: scrypt's n; lower only where guessing does not matter, as in tests.

    Raises:
        InputError: the passphrase is empty, or the vocabulary larger than key files hold.
    """
    if not passphrase.reveal():
        raise InputError("an empty passphrase protects nothing; give one")
    if key.identity.vocabulary > MAX_VOCABULARY:
        raise InputError(f"a vocabulary of {key.identity.vocabulary} is larger than key files hold ({MAX_VOCABULARY})")
    owner = isinstance(key, OwnerKey)
    header = Header(
        kind="owner" if owner else "client",
        kdf=Kdf(os.urandom(16).hex(), cost),
        nonce=os.urandom(12).hex(),
        settings=key.settings if isinstance(key, OwnerKey) else None,
        **msgspec.structs.asdict(key.identity),
    )
    content = key.seed.reveal() if isinstance(key, OwnerKey) else key.tau.astype("<u4").tobytes()
    written = msgspec.json.encode(header)
    opening = MAGIC + len(written).to_bytes(4, "little") + written
    return opening + _cipher(header, passphrase).encrypt(bytes.fromhex(header.nonce), content, opening)


def open_owner_key(content: bytes, passphrase: Secret) -> OwnerKey:
    """The owner's key in a key file.

    Raises:
        KeyFileError: it is no owner's key, damaged, or the passphrase is another.
    """
    header, seed = _open(content, passphrase, "owner")
    if header.settings is None or len(seed) != SEED_BYTES:
        raise KeyFileError("the key file lacks what an owner's key holds; it was not made by this program")
    return OwnerKey(identity=header.identity, settings=header.settings, seed=Secret(seed))


def open_client_key(content: bytes, passphrase: Secret) -> ClientKey:
    """The client's key in a key file; that it holds a permutation is checked.

    Raises:
        KeyFileError: it is no client's key, damaged, or the passphrase is another.
    """
    header, ids = _open(content, passphrase, "client")
    if len(ids) != 4 * header.vocabulary:
        raise KeyFileError(f"the key file holds {len(ids)} bytes for {header.vocabulary} token ids; it is damaged")
    tau: Ids = np.frombuffer(ids, dtype="<u4").astype(np.uint32)
    return ClientKey(header.identity, frozen(tau))


def read_header(content: bytes) -> Header:
    """What a key file says openly. Nothing proves it before the file is opened with its passphrase.

    Raises:
        KeyFileError: it is no key file.
    """
    return _split(content)[0]


def _open(content: bytes, passphrase: Secret, kind: str) -> tuple[Header, bytes]:
    header, opening, sealed = _split(content)
    if header.kind != kind:
        raise KeyFileError(f"this is the {header.kind}'s key file; the {kind}'s is needed")
    try:
        return header, _cipher(header, passphrase).decrypt(bytes.fromhex(header.nonce), sealed, opening)
    except InvalidTag:
        raise KeyFileError(
            f"key {header.key_id} does not open: the passphrase is another, or the file was changed or damaged"
        ) from None


def _split(content: bytes) -> tuple[Header, bytes, bytes]:
    """Header, everything up to the ciphertext, ciphertext."""
    if len(content) > MAX_KEY_BYTES or not content.startswith(MAGIC) or len(content) < len(MAGIC) + 4:
        raise KeyFileError(
            "this is no key file of an obfuscated model; give the owner.key or client.key of `cutlayer obfuscate`"
        )
    start = len(MAGIC) + 4
    end = start + int.from_bytes(content[len(MAGIC) : start], "little")
    if end - start > MAX_HEADER or len(content) < end + _TAG:
        raise KeyFileError("the key file is cut short or damaged; get it from its owner again")
    try:
        header = msgspec.json.decode(content[start:end], type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KeyFileError(f"the key file's header is damaged: {error}") from None
    if header.kdf.n & (header.kdf.n - 1):
        raise KeyFileError(f"the key file's header is damaged: scrypt's n is {header.kdf.n}, no power of two")
    return header, content[:end], content[end:]


def _cipher(header: Header, passphrase: Secret) -> AESGCM:
    kdf = header.kdf
    return AESGCM(Scrypt(bytes.fromhex(kdf.salt), 32, kdf.n, kdf.r, kdf.p).derive(passphrase.reveal()))
