"""A read-only table of what a model says after short contexts, made once from what the model itself wrote.

One safetensors file: for every token of the vocabulary the likeliest next ones (`token_ids`, `token_chances` [V, K]), and for
contexts of two to four tokens the same under a 32-bit hash (`context_keys` [C], ascending, `context_ids`, `context_chances`
[C, K]). Chances are in 255ths. The file names the model by its fingerprint. The one that comes with the package holds nothing a
user ever wrote; one made from answers to a user's prompts is the user's alone.

Of the longer contexts those are kept that say most beyond what the context shorter by one token says (after Stolcke 1998,
"Entropy-based pruning of backoff language models").

Notation: V vocabulary, K candidates, C contexts.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from cutlayer import config
from cutlayer.client.speculation.mixture import NOTHING, Opinion
from cutlayer.client.speculation.tensor_file import Purpose, pack, replace, require, unpack
from cutlayer.errors import InputError
from cutlayer.wire.private_files import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from cutlayer.client.speculation.speculator import Verified

MAX_BYTES: Final = 8 << 20
"""Small enough to ship; `build` keeps to it and `load` refuses more."""
_KIND, _VERSION = "candidate-table", "1"
WIDTH: Final = 8
"""K"""
LONGEST: Final = 4
"""Tokens of the longest context."""
_UNNAMED: Final = 1e-3
"""Chance taken for a token that a shorter context does not name."""
_READ: Final = 1 << 14
"""Contexts whose candidates are held ready."""
_SCALE: Final = 255
_HEADER_BYTES: Final = 4096
_TENSORS: Final = ("token_ids", "token_chances", "context_keys", "context_ids", "context_chances")


class Entry(NamedTuple):
    """One verified context of a text the model wrote."""

    context: Sequence[int]
    """The last tokens, at least one; more than `LONGEST` are not looked at."""
    tokens: Sequence[int]
    """The likeliest next ones."""
    chances: Sequence[float]


class CandidateTable:
    """See the module; a `Contexts`.

    Args:
        token_ids: [V, K]
        token_chances: [V, K], uint8, 0 for no candidate.
        context_keys: [C], uint32, ascending.
        context_ids: [C, K]
        context_chances: [C, K]
    """

    longest = LONGEST

    def __init__(
        self,
        token_ids: npt.NDArray[Any],
        token_chances: npt.NDArray[Any],
        context_keys: npt.NDArray[Any],
        context_ids: npt.NDArray[Any],
        context_chances: npt.NDArray[Any],
    ) -> None:
        tensors = (token_ids, token_chances, context_keys, context_ids, context_chances)
        self.tensors = dict(zip(_TENSORS, tensors, strict=True))
        self._ready = lru_cache(_READ)(self._look_up)

    def get(self, context: tuple[int, ...]) -> Opinion:
        """Candidates after a context of 1 … `LONGEST` tokens; empty if it holds none."""
        return self._ready(context)

    def _look_up(self, context: tuple[int, ...]) -> Opinion:
        tensors = self.tensors
        if len(context) == 1:
            return _read(tensors["token_ids"], tensors["token_chances"], context[0])
        keys, key = tensors["context_keys"], _hash(context)
        at = int(np.searchsorted(keys, np.uint32(key)))
        if at == len(keys) or int(keys[at]) != key:
            return NOTHING
        return _read(tensors["context_ids"], tensors["context_chances"], at)

    def learn(self, seen: Verified, contexts: Sequence[tuple[int, ...]]) -> None:
        """See `Contexts.learn`. It never changes."""

    def close(self) -> None:
        """See `Contexts.close`."""


def entries_of(
    ids: Sequence[int], tokens: Sequence[Sequence[int]], chances: Sequence[Sequence[float]], first: int
) -> Iterator[Entry]:
    """The entries of one text.

    Args:
        ids: the text, [T].
        tokens: the likeliest tokens after each position, [T, K].
        chances: of those, [T, K].
        first: position after which the first entry is: the last of the prompt, for the model's own words alone.
    """
    for at in range(first, len(ids)):
        yield Entry(ids[max(0, at + 1 - LONGEST) : at + 1], tokens[at], chances[at])


def build(entries: Iterable[Entry], vocabulary: int) -> CandidateTable:
    """Average what the model said after each context; of the longer contexts as many are kept as fit.

    Args:
        entries: any number; they are read once. Each distinct context takes about a kilobyte while the table is made.
        vocabulary: V

    Raises:
        InputError: an entry names a token outside the vocabulary, or the vocabulary alone would not fit into `MAX_BYTES`.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    sums: dict[tuple[int, ...], dict[int, float]] = {}
    for entry in entries:
        if not all(0 <= token < vocabulary for token in (*entry.context, *entry.tokens)):
            raise InputError(f"an entry of the table has a token outside the vocabulary of {vocabulary}")
        for length in range(1, min(LONGEST, len(entry.context)) + 1):
            context = tuple(entry.context[-length:])
            counts[context] += 1
            said = sums.setdefault(context, {})
            for token, chance in zip(entry.tokens, entry.chances, strict=True):
                said[token] = said.get(token, 0.0) + chance
    dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    row = WIDTH * (dtype.itemsize + 1)
    room = (MAX_BYTES - _HEADER_BYTES - vocabulary * row) // (row + 4)
    if room < 0:
        raise InputError(f"a table for a vocabulary of {vocabulary} does not fit into {MAX_BYTES} bytes")
    longer: dict[int, tuple[int, ...]] = {}
    several = [context for context in counts if len(context) > 1]
    for context in sorted(several, key=lambda context: _worth(context, sums, counts), reverse=True)[:room]:
        longer.setdefault(_hash(context), context)  # of two with one hash the one worth more
    keys = sorted(longer)
    tokens = [(token,) for token in range(vocabulary)]
    return CandidateTable(
        *_written(tokens, sums, counts, dtype),
        np.array(keys, np.uint32),
        *_written([longer[key] for key in keys], sums, counts, dtype),
    )


def find_table(fingerprint: str) -> Path | None:
    """The table of the model of this fingerprint: the user's own, else one that came with the package, else None."""
    own = own_table(fingerprint)
    return next((place for place in (own, Path(__file__).parent / "tables" / own.name) if place.is_file()), None)


def own_table(fingerprint: str) -> Path:
    """Where the user's own table of a model is kept."""
    return config.home() / "tables" / f"{fingerprint}.safetensors"


def save_table(table: CandidateTable, fingerprint: str, file: Path, mode: int = PUBLIC) -> None:
    """Write a table for the model of this fingerprint.

    Args:
        table: the table.
        fingerprint: of the model.
        file: where.
        mode: of the file; `PRIVATE` if the text was not made up by the model alone.

    Raises:
        InputError: it cannot be written.
    """
    replace(file, pack(table.tensors, Purpose(_KIND, _VERSION, fingerprint)), mode)


def shared_table(file: Path, fingerprint: str, vocabulary: int) -> CandidateTable:
    """As `load_table`; sessions share what was read, as long as the file does not change.

    Raises:
        InputError: as `load_table`.
    """
    return _load(file, file.stat().st_mtime_ns if file.is_file() else 0, fingerprint, vocabulary)


def load_table(file: Path, fingerprint: str, vocabulary: int) -> CandidateTable:
    """Read the table of a model.

    Raises:
        InputError: missing, too large, damaged, or for another model.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{file} is longer than {MAX_BYTES} bytes; that is no candidate table")
    tensors = unpack(content, Purpose(_KIND, _VERSION, fingerprint), file)
    require(tensors, "context_keys", ("uint32",), (None,), file)
    contexts = len(tensors["context_keys"])
    for name, rows in (("token", vocabulary), ("context", contexts)):
        require(tensors, f"{name}_ids", ("uint16", "uint32"), (rows, WIDTH), file)
        require(tensors, f"{name}_chances", ("uint8",), (rows, WIDTH), file)
        if int(tensors[f"{name}_ids"].max(initial=0)) >= vocabulary:
            raise InputError(f"{file} names a token outside the vocabulary of {vocabulary}")
        if int(tensors[f"{name}_chances"].sum(1, dtype=np.int64).max(initial=0)) > _SCALE:
            raise InputError(f"{file} has chances that sum to more than 1")
    if np.any(np.diff(tensors["context_keys"].astype(np.int64)) <= 0):
        raise InputError(f"{file}: its keys do not ascend")
    return CandidateTable(*(tensors[name] for name in _TENSORS))


def _worth(
    context: tuple[int, ...], sums: Mapping[tuple[int, ...], Mapping[int, float]], counts: Mapping[tuple[int, ...], int]
) -> tuple[float, int]:
    """Nats that a context said beyond the one shorter by a token, over all the times it came; then how often it came."""
    shorter, count = context[1:], counts[context]
    beyond = 0.0
    for token, total in sums[context].items():
        if total > 0:
            expected = max(sums[shorter].get(token, 0.0) / counts[shorter], _UNNAMED)
            beyond += total * math.log(total / count / expected)
    return beyond, count


@lru_cache(maxsize=2)
def _load(file: Path, changed: int, fingerprint: str, vocabulary: int) -> CandidateTable:
    return load_table(file, fingerprint, vocabulary)


def _written(
    contexts: Sequence[tuple[int, ...]],
    sums: Mapping[tuple[int, ...], Mapping[int, float]],
    counts: Mapping[tuple[int, ...], int],
    dtype: np.dtype[Any],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    ids = np.zeros((len(contexts), WIDTH), dtype)
    chances = np.zeros((len(contexts), WIDTH), np.uint8)
    for row, context in enumerate(contexts):
        best = sorted(sums.get(context, {}).items(), key=lambda item: -item[1])[:WIDTH]
        for column, (token, total) in enumerate(best):
            ids[row, column] = token
            chances[row, column] = int(total / counts[context] * _SCALE)  # down, so that the sum stays below 1
    return ids, chances


def _read(ids: npt.NDArray[Any], chances: npt.NDArray[Any], row: int) -> Opinion:
    pairs = zip(ids[row].tolist(), chances[row].tolist(), strict=True)
    return Opinion({token: chance / _SCALE for token, chance in pairs if chance})


def _hash(context: tuple[int, ...]) -> int:
    """32 bits; the same on every machine."""
    mixed = len(context)
    for token in context:
        mixed = (mixed ^ token) * 0x9E3779B1 & 0xFFFFFFFF
        mixed ^= mixed >> 15
    return mixed
