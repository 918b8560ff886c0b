"""Candidates that outlive a session, if the user asks for it: one file per model and profile, on this machine alone.

Privacy: the file tells which tokens followed which in somebody's conversations, so it is written only for who names a profile
(``profile=NAME``), for its owner alone (mode 0600), in the user's own directory, and nothing of it is ever sent. Without one
everything is forgotten with the session.

A file that cannot be used is reported and left as it is; the session starts afresh and does not save over it.

Notation: C contexts, N tokens of the longest context, K candidates.
"""

from __future__ import annotations

import re
import warnings
from typing import Final

import numpy as np

from cutlayer import config
from cutlayer.client.speculation.candidates import CAPACITY, WIDTH, Candidates
from cutlayer.client.speculation.tensor_file import Purpose, pack, replace, require, unpack
from cutlayer.errors import InputError
from cutlayer.wire.private_files import PRIVATE, read_private

_KIND, _VERSION = "candidate-profile", "1"
_MAX_BYTES: Final = 8 << 20
"""Far above what `CAPACITY` contexts take."""
_SUM: Final = 1.001
"""Chances sum to 1 at most, but for rounding."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ProfileCandidates(Candidates):
    """Candidates kept between sessions. Of sessions that run at once the last one to end is remembered.

    Args:
        longest: as `Candidates`.
        name: of the profile.
        fingerprint: of the model.
        vocabulary: V

    Raises:
        InputError: no name of a profile.
    """

    def __init__(self, longest: int, name: str, fingerprint: str, vocabulary: int) -> None:
        super().__init__(longest)
        if not _NAME.fullmatch(name):
            raise InputError(f"profile {name!r}: a name is up to 64 letters, digits, dots, dashes and underlines")
        self.file = config.home() / "profiles" / f"{name}.{fingerprint}.safetensors"
        self._purpose = Purpose(_KIND, _VERSION, fingerprint)
        self._vocabulary = vocabulary
        self._usable = True
        if self.file.exists():
            try:
                self._load()
            except InputError as error:
                self._usable = False
                warnings.warn(f"{error}; guessing starts afresh and this profile is not saved", stacklevel=2)

    def close(self) -> None:
        """Write what this session knows, in place of what was there.

        Raises:
            InputError: it cannot be written.
        """
        if not self._usable:
            return
        contexts = np.full((len(self), self.longest), -1, np.int32)  # [C, N], filled from the right
        ids = np.zeros((len(self), WIDTH), np.int32)  # [C, K]
        chances = np.zeros((len(self), WIDTH), np.float32)  # [C, K]
        for row, (context, said) in enumerate(self):
            contexts[row, self.longest - len(context) :] = context
            ids[row, : len(said)] = list(said)
            chances[row, : len(said)] = list(said.values())
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use {self.file.parent}: {error.strerror}") from error
        replace(self.file, pack({"contexts": contexts, "ids": ids, "chances": chances}, self._purpose), PRIVATE)

    def _load(self) -> None:
        file = self.file
        tensors = unpack(read_private(file, _MAX_BYTES), self._purpose, file)
        require(tensors, "contexts", ("int32",), (None, self.longest), file)
        contexts = tensors["contexts"]
        require(tensors, "ids", ("int32",), (len(contexts), WIDTH), file)
        require(tensors, "chances", ("float32",), (len(contexts), WIDTH), file)
        ids, chances = tensors["ids"], tensors["chances"]
        if len(contexts) > CAPACITY:
            raise InputError(f"{file} holds {len(contexts)} contexts, more than {CAPACITY}")
        missing = contexts == -1
        if missing[:, -1].any() or (missing[:, 1:] & ~missing[:, :-1]).any():
            raise InputError(f"{file} holds a context with a gap")
        largest = max(contexts.max(initial=0), ids.max(initial=0))
        if largest >= self._vocabulary or min(contexts.min(initial=0) + 1, ids.min(initial=0)) < 0:
            raise InputError(f"{file} names a token outside the vocabulary of {self._vocabulary}")
        # Written so that NaN fails as well.
        if not ((chances >= 0).all() and chances.sum(1).max(initial=0) <= _SUM):
            raise InputError(f"{file} holds chances that are none")
        for context, row, said in zip(contexts.tolist(), ids.tolist(), chances.tolist(), strict=True):
            named = {token: chance for token, chance in zip(row, said, strict=True) if chance > 0}
            self.put(tuple(token for token in context if token >= 0), named)
