"""Tiny exports as their host sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from cutlayer.attacks.keycut.attack import Claim, Held, NoClaim, Public, build_attack, missing
from cutlayer.attacks.keycut.weights import Weights
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import ClientKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Target(NamedTuple):
    """A base, its export, and the truth."""

    base: Weights
    export: Weights
    client: ClientKey

    def claim(
        self,
        spec: str,
        corpus: Sequence[Sequence[int]] | None = None,
        log: Sequence[Sequence[int]] | None = None,
        known: Sequence[int] = (),
        base: Weights | None = None,
    ) -> Claim | NoClaim:
        """What an attack says of every id that is not known; `log` and `known` are in plain ids."""
        asked = [token for token in range(self.export.vocabulary) if int(self.client.inverse[token]) not in set(known)]
        held = Held(
            self.export,
            torch.tensor(asked),
            None if log is None else [self.client.to_server(document) for document in log],
            torch.tensor([[plain, int(self.client.tau[plain])] for plain in known]) if known else None,
        )
        attack, public = build_attack(spec), Public(base or self.base, corpus)
        assert not missing(attack, public, held)
        return attack.prepare(public).read(held)

    def share(self, *arguments: Any, **options: Any) -> float:
        """Share of the asked ids that an attack names rightly."""
        claim = self.claim(*arguments, **options)
        assert isinstance(claim, Claim)
        truth = torch.from_numpy(self.client.inverse.astype("int64"))[claim.ids]
        return float((claim.plain == truth).float().mean())


@pytest.fixture
def target(tmp_path: Path) -> Callable[..., Target]:
    """(base, settings of `choose`) → its export."""

    def make(base: Path, **settings: Any) -> Target:
        key = create_owner_key(base, choose(base, **settings), Secret(bytes(range(32))))
        export(base, tmp_path / "export", key)
        return Target(Weights.open(base), Weights.open(tmp_path / "export"), key.client())

    return make
