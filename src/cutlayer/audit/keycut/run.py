"""Attack one export with every attack there is, and score what can be scored.

Notation: V vocabulary, N asked ids.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import torch

from cutlayer.attacks.keycut.attack import Held, NoClaim, Public, build_attack, missing
from cutlayer.attacks.keycut.weights import Weights
from cutlayer.audit.keycut.scoring import SHARES, Truth
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cutlayer.attacks.keycut.attack import Attack, Reader
    from cutlayer.audit.keycut.material import Material
    from cutlayer.obfuscation.keys import ClientKey

DEFAULT_ATTACKS: Final = (
    "nearest-row",
    "vocabulary-matching",
    "gate-means",
    "clx",
    "known-plaintext:pairs=100",
    "known-plaintext:pairs=300",
    "known-plaintext:pairs=1000",
    "fingerprint",
    "frequency",
    "decipherment",
    "states:depth=0,keys=none",
    "states:depth=0,keys=clx",
    "states:depth=0.5,keys=none",
    "states:depth=0.5,keys=clx",
)

MOST_KNOWN: Final = 1000
NO_KEY: Final = "τ is needed for it: give --key, the client's"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one attack on one export."""

    attack: str
    """As it was asked for."""
    label: str
    needs: list[str]
    figures: dict[str, Figure | Unmeasured]
    """`SHARES`."""
    facts: dict[str, float]
    """What the attack can tell by itself."""
    seconds: float | None
    """Of the part that is done for each export; None where the attack was not run."""

    @property
    def needs_base(self) -> bool:
        """Whether only a host with the base model can run it."""
        return "base" in self.needs


class Scene:
    """One export under attack.

    Args:
        export: obfuscated weights.
        key: of the client, from which logs and known pairs are made and by which claims are scored; None leaves these out.
        text: of both sides.
        sample: how many uniformly drawn ids the share of the vocabulary is estimated on.
        seed: of sample and known pairs.

    Raises:
        InputError: the key is of another vocabulary, or the sample is not positive.
    """

    def __init__(self, export: Weights, key: ClientKey | None, text: Material, sample: int, seed: int = 0) -> None:
        vocabulary = export.vocabulary
        if sample < 1:
            raise InputError(f"a sample of {sample} ids estimates nothing; draw at least one")
        if key is not None and len(key.tau) != vocabulary:
            raise InputError(f"the key is for {len(key.tau)} ids, and the export has {vocabulary}")
        drawn = np.random.default_rng(seed).permutation(vocabulary)
        count = min(sample, vocabulary - min(MOST_KNOWN, vocabulary // 2))
        sampled = drawn[:count]
        self.truth: Truth | None = None
        log, known = None, None
        asked = sampled.tolist()
        if key is not None:
            permuted = drawn[count:][:MOST_KNOWN]
            plain = key.inverse[permuted].astype(np.int64)
            known = torch.from_numpy(np.stack([plain, permuted], 1))
            log = [key.to_server(document) for document in text.sent]
            given = set(permuted.tolist())
            common = torch.bincount(torch.tensor([token for document in log for token in document]))
            frequent = [token for token in common.argsort(descending=True).tolist() if common[token] > 0]
            asked = [token for token in dict.fromkeys([*frequent, *asked]) if token not in given]
            self.truth = Truth(key.inverse, sampled.tolist(), text.sent, plain.tolist())
        self.held = Held(export, torch.tensor(asked), log, known)

    def attack(self, attack: Attack, name: str, public: Public, reader: Reader | None = None) -> Outcome:
        """Run one attack.

        Args:
            attack: configured.
            name: how it was asked for.
            public: what the attacker has.
            reader: the attack prepared on `public`, where it has been before.
        """
        absent = missing(attack, public, self.held)
        if absent:
            return self._outcome(attack, name, Unmeasured(f"needs {', '.join(sorted(absent))}; {NO_KEY}"))
        reader = reader or attack.prepare(public)
        started = time.perf_counter()
        claim = reader.read(self.held)
        seconds = time.perf_counter() - started
        if isinstance(claim, NoClaim):
            return self._outcome(attack, name, Unmeasured(claim.reason))
        figures = dict.fromkeys(SHARES, Unmeasured(NO_KEY)) if self.truth is None else self.truth.score(claim)
        return self._outcome(attack, name, figures, dict(claim.facts), seconds)

    @staticmethod
    def _outcome(
        attack: Attack,
        name: str,
        figures: dict[str, Figure | Unmeasured] | dict[str, Unmeasured] | Unmeasured,
        facts: dict[str, float] | None = None,
        seconds: float | None = None,
    ) -> Outcome:
        shares = dict.fromkeys(SHARES, figures) if isinstance(figures, Unmeasured) else figures
        card = attack.card
        return Outcome(
            attack=name,
            label=card.label,
            needs=sorted(card.needs),
            figures={**shares},
            facts=facts or {},
            seconds=seconds,
        )


def check_same_shape(base: Weights, export: Weights) -> None:
    """Refuse a base that the export cannot have been made from.

    Raises:
        InputError: vocabularies or layers differ.
    """
    for what in ("vocabulary", "layers"):
        ours, theirs = getattr(base, what), getattr(export, what)
        if ours != theirs:
            raise InputError(f"the export cannot have been made from this base: {what} {theirs} there, {ours} here")


def audit(
    export: Path,
    base: Path,
    key: ClientKey | None,
    text: Material,
    *,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    sample: int = 2000,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda attack, share: None,
) -> list[Outcome]:
    """Every attack on one export.

    Args:
        export: its directory.
        base: directory of the model it is thought to be made from.
        key: of the client; without it claims are not scored, and attacks on traffic are not run.
        text: of both sides.
        attacks: names with options.
        sample: ids on which the share of the vocabulary is estimated.
        seed: of sample and known pairs.
        progress: told the attack that begins and the share done.

    Raises:
        InputError: an attack or option is unknown, or base and export cannot belong together.
        ModelNotFoundError, UnsupportedModelError, WeightsError: a checkpoint is unusable.
    """
    built = [(name, build_attack(name)) for name in attacks]
    public = Public(Weights.open(base), text.corpus)
    held = Weights.open(export)
    check_same_shape(Weights.open(base), held)
    scene = Scene(held, key, text, sample, seed)
    outcomes = []
    for number, (name, attack) in enumerate(built):
        progress(name, number / len(built))
        outcomes.append(scene.attack(attack, name, public))
    return outcomes


def strongest(outcomes: Sequence[Outcome], *, with_base: bool) -> Outcome | None:
    """The outcome with the largest share of the traffic among those a host with, or without, the base model can have."""
    measured = [
        outcome
        for outcome in outcomes
        if (with_base or not outcome.needs_base) and isinstance(outcome.figures["occurrences"], Figure)
    ]
    return max(measured, key=lambda one: one.figures["occurrences"].value, default=None)  # type: ignore[union-attr]
