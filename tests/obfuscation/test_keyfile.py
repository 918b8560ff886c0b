"""Key files against wrong passphrases, damage, and files that were never keys."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import InputError, KeyFileError
from cutlayer.obfuscation.keyfile import MAGIC, open_client_key, open_owner_key, read_header, seal
from cutlayer.obfuscation.keys import ClientKey, Identity, OwnerKey
from cutlayer.obfuscation.marker import Marker
from cutlayer.obfuscation.settings import Settings
from cutlayer.types import Secret

PASSPHRASE = Secret(b"correct horse")
CHEAP = 1 << 14
OWNER = OwnerKey(
    identity=Identity(
        key_id="ab" * 16,
        created="2026-11-22T12:00:00+00:00",
        vocabulary=300,
        base="cd" * 16,
        weights="ef" * 32,
        stop_ids=(2, 5),
    ),
    settings=Settings(mode="noisy", hidden_size=48, dtype="float32", alpha_e=0.1, alpha_h=0.05),
    seed=Secret(bytes(range(32))),
)


@cache
def sealed(kind: str) -> bytes:
    return seal(OWNER if kind == "owner" else OWNER.client(), PASSPHRASE, cost=CHEAP)


def test_round_trip() -> None:
    owner = open_owner_key(sealed("owner"), PASSPHRASE)
    assert (owner.identity, owner.settings) == (OWNER.identity, OWNER.settings)
    assert owner.seed.reveal() == OWNER.seed.reveal()
    client = open_client_key(sealed("client"), PASSPHRASE)
    assert client.identity == OWNER.identity
    assert np.array_equal(client.tau, OWNER.tau())


def test_same_key_never_gives_the_same_file() -> None:
    assert seal(OWNER, PASSPHRASE, cost=CHEAP) != sealed("owner")


def test_wrong_passphrase() -> None:
    for opener, kind in ((open_owner_key, "owner"), (open_client_key, "client")):
        with pytest.raises(KeyFileError, match="passphrase is another"):
            opener(sealed(kind), Secret(b"correct house"))
    with pytest.raises(InputError, match="empty passphrase"):
        seal(OWNER, Secret(b""))


def test_the_other_kind_of_key() -> None:
    with pytest.raises(KeyFileError, match="client's key file; the owner's is needed"):
        open_owner_key(sealed("client"), PASSPHRASE)
    with pytest.raises(KeyFileError, match="owner's key file; the client's is needed"):
        open_client_key(sealed("owner"), PASSPHRASE)


@settings(max_examples=50)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), kind=st.sampled_from(["owner", "client"]))
def test_any_flipped_bit_is_noticed(position: float, bit: int, kind: str) -> None:
    damaged = bytearray(sealed(kind))
    damaged[int(position * len(damaged))] ^= 1 << bit
    with pytest.raises(KeyFileError):
        (open_owner_key if kind == "owner" else open_client_key)(bytes(damaged), PASSPHRASE)


@settings(max_examples=50)
@given(length=st.integers(0, 2000), kind=st.sampled_from(["owner", "client"]))
def test_any_shorter_file_is_refused(length: int, kind: str) -> None:
    whole = sealed(kind)
    with pytest.raises(KeyFileError):
        (open_owner_key if kind == "owner" else open_client_key)(whole[: min(length, len(whole) - 1)], PASSPHRASE)


@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_no_key(content: bytes) -> None:
    for file in (content, MAGIC + content):
        with pytest.raises(KeyFileError):
            read_header(file)


def forged(**changes: object) -> bytes:
    """A client's key file with another header, before any proof of it is asked for."""
    length = int.from_bytes(sealed("client")[8:12], "little")
    header = json.loads(sealed("client")[12 : 12 + length])
    written = json.dumps({**header, **changes}).encode()
    return MAGIC + len(written).to_bytes(4, "little") + written + sealed("client")[12 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf": {"salt": "00" * 16, "n": 1 << 30}},
        {"kdf": {"salt": "00" * 16, "n": (1 << 17) + 1}},
        {"kdf": {"salt": "00" * 16, "n": 2}},
        {"kdf": {"salt": "00" * 16, "r": 1 << 20}},
        {"vocabulary": 1 << 40},
        {"vocabulary": 0},
        {"nonce": ""},
        {"key_id": "../../etc"},
        {"cipher": "none"},
        {"stop_ids": [-1]},
        {"more": 1},
    ],
)
def test_headers_are_checked_before_they_cost_anything(changes: dict[str, object]) -> None:
    with pytest.raises(KeyFileError, match="damaged"):
        open_client_key(forged(**changes), PASSPHRASE)


def test_a_header_that_parses_is_still_authenticated() -> None:
    for changes in ({"vocabulary": 299}, {"base": "ee" * 16}, {"stop_ids": [2]}, {"created": "1970"}):
        with pytest.raises(KeyFileError, match="does not open"):
            open_client_key(forged(**changes), PASSPHRASE)


def test_what_is_no_permutation_is_refused() -> None:
    twice = OWNER.tau().copy()
    twice[3] = twice[4]
    outside = OWNER.tau().copy()
    outside[3] = 300
    for ids in (twice, outside, OWNER.tau()[:-1]):
        with pytest.raises(KeyFileError, match="damaged"):
            ClientKey(OWNER.identity, ids)


def test_key_of_another_export() -> None:
    client = OWNER.client()
    own = {"format": 1, "key_id": "ab" * 16, "vocabulary": 300, "hidden_size": 48, "files": {}}
    client.check(Marker(**own))
    for other in ({"key_id": "ba" * 16}, {"vocabulary": 301}):
        with pytest.raises(KeyFileError, match="client key that was made with the export"):
            client.check(Marker(**{**own, **other}))


def test_no_secret_stands_openly_in_a_file() -> None:
    for kind in ("owner", "client"):
        assert OWNER.seed.reveal() not in sealed(kind)
        assert OWNER.seed.reveal().hex().encode() not in sealed(kind)
        assert OWNER.tau()[:8].tobytes() not in sealed(kind)
    assert b"noisy" not in sealed("client")
