"""What the owner and the client of an export hold.

* `OwnerKey`: the seed, from which every secret follows, and the settings. Whoever has it can undo the export.
* `ClientKey`: τ alone, all that talking to the export takes. Whoever has it can read and write its traffic.

Notation: V vocabulary.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cutlayer.errors import InputError, KeyFileError
from cutlayer.models.locate import fingerprint
from cutlayer.obfuscation.base_digest import base_digest
from cutlayer.obfuscation.families import family_of
from cutlayer.obfuscation.settings import Settings
from cutlayer.obfuscation.stop_ids import stop_ids
from cutlayer.obfuscation.stream import SEED_BYTES
from cutlayer.obfuscation.tau import draw_tau, identity, inverse
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.obfuscation.marker import Marker
    from cutlayer.obfuscation.tau import Ids

KEY_ID_BYTES = 16


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a key says openly of itself.

    Args:
        key_id: random name that the export carries too, 32 hexadecimal digits.
        created: ISO 8601, UTC.
        vocabulary: V.
        base: fingerprint of the model it was made for (`cutlayer.models.locate.fingerprint`), by which a client finds mistakes.
        weights: digest of that model's files (`cutlayer.obfuscation.base_digest`), by which an export does.
        stop_ids: ids that end an answer, as the plain model knows them.
    """

    key_id: str
    created: str
    vocabulary: int
    base: str
    weights: str
    stop_ids: tuple[int, ...]


class OwnerKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an export was made with.

    Args:
        identity: what may be shown.
        settings: of the export.
        seed: 32 secret bytes.
    """

    identity: Identity
    settings: Settings
    seed: Secret

    def tau(self) -> Ids:
        """τ, uint32, [V]."""
        if "vocabulary" not in self.settings.components:
            return identity(self.identity.vocabulary)
        return draw_tau(self.seed, self.identity.vocabulary)

    def client(self) -> ClientKey:
        """The part that a client needs."""
        return ClientKey(self.identity, self.tau())


class ClientKey:
    """τ and its inverse.

    Args:
        identity: what may be shown.
        tau: ``tau[plain id]`` is the id the server sees, uint32, [V].

    Raises:
        KeyFileError: `tau` is no permutation of V ids.
    """

    def __init__(self, identity: Identity, tau: Ids) -> None:
        if len(tau) != identity.vocabulary:
            raise KeyFileError(f"the key holds {len(tau)} token ids and says {identity.vocabulary}; it is damaged")
        self.identity = identity
        self.tau = tau
        self.inverse = inverse(tau)

    def to_server(self, ids: Sequence[int]) -> list[int]:
        """Plain token ids as the server knows them.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        return self._mapped(self.tau, ids)

    def from_server(self, ids: Sequence[int]) -> list[int]:
        """The server's token ids as the plain model knows them.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        return self._mapped(self.inverse, ids)

    def check(self, marker: Marker) -> None:
        """Refuse an export that was made with another key.

        Raises:
            KeyFileError: its key id or vocabulary is another.
        """
        ours, theirs = self.identity, marker
        if (ours.key_id, ours.vocabulary) != (theirs.key_id, theirs.vocabulary):
            raise KeyFileError(
                f"this key is {ours.key_id} for {ours.vocabulary} token ids, but the export was made with key {theirs.key_id} "
                f"for {theirs.vocabulary}; use the client key that was made with the export"
            )

    def __repr__(self) -> str:
        return f"ClientKey({self.identity.key_id}, <{len(self.tau)} token ids>)"

    def _mapped(self, table: Ids, ids: Sequence[int]) -> list[int]:
        outside = next((token for token in ids if not 0 <= token < len(table)), None)
        if outside is not None:
            raise InputError(
                f"a token id is outside the key's vocabulary of {len(table)}; tokenizer, key and model must belong together"
            )
        return [int(token) for token in table[np.asarray(ids, dtype=np.int64)]]


def create_owner_key(base: Path, settings: Settings, seed: Secret | None = None) -> OwnerKey:
    """A new key for an export of the model in `base`.

    Args:
        base: model directory.
        settings: from `cutlayer.obfuscation.settings.choose`.
        seed: only to repeat an experiment; by default from the operating system.

    Raises:
        InputError: `seed` is not of 32 bytes.
        UnsupportedModelError, ModelNotFoundError, WeightsError: the model is unsupported or unreadable.
    """
    if seed is not None and len(seed.reveal()) != SEED_BYTES:
        raise InputError(f"a seed has {SEED_BYTES} bytes, not {len(seed.reveal())}")
    config, _ = family_of(base)
    identity = Identity(
        key_id=os.urandom(KEY_ID_BYTES).hex(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        vocabulary=config.vocab_size,
        base=fingerprint(base),
        weights=base_digest(base),
        stop_ids=stop_ids(base, config),
    )
    return OwnerKey(identity=identity, settings=settings, seed=seed or Secret(os.urandom(SEED_BYTES)))
