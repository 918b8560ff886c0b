"""τ, the secret permutation of the vocabulary: all V ids, special ones and unused tail rows included, which act as decoys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cutlayer.errors import KeyFileError
from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from cutlayer.types import Secret

Ids = np.ndarray[tuple[int], np.dtype[np.uint32]]


def draw_tau(seed: Secret, vocabulary: int) -> Ids:
    """τ of a seed: ``tau[plain id]`` is the id the server sees. Read-only uint32, [V]."""
    return frozen(Stream(seed, "perm").permutation(vocabulary).numpy().astype(np.uint32))


def identity(vocabulary: int) -> Ids:
    """τ that hides nothing, for exports without this component."""
    return frozen(np.arange(vocabulary, dtype=np.uint32))


def inverse(tau: Ids) -> Ids:
    """τ⁻¹, uint32, [V].

    Raises:
        KeyFileError: `tau` is no permutation.
    """
    found = np.full(len(tau), len(tau), dtype=np.uint32)
    if len(tau) and int(tau.max()) < len(tau):
        found[tau] = np.arange(len(tau), dtype=np.uint32)
    if len(tau) == 0 or int(found.max()) == len(tau):
        raise KeyFileError(
            f"the key's {len(tau)} token ids are no permutation; it is damaged, get it from its owner again"
        )
    return frozen(found)


def frozen(ids: Ids) -> Ids:
    """`ids`, which nobody can write to from now on."""
    ids.setflags(write=False)
    return ids
