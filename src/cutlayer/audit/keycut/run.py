"""Attack one export with every attack there is, and score what can be scored.

Notation: V vocabulary, N asked ids.
"""

from __future__ import annotations

import time
from collections import Counter
from types import MappingProxyType
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
    from collections.abc import Callable, Mapping, Sequence
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
    """Of processor time, for the part that is done for each export; None where the attack was not run."""

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
        if sample < 1:
            raise InputError(f"a sample of {sample} ids estimates nothing; draw at least one")
        vocabulary = export.vocabulary
        drawn = np.random.default_rng(seed).permutation(vocabulary)
        count = min(sample, vocabulary - min(MOST_KNOWN, vocabulary // 2))
        sampled, given = drawn[:count].tolist(), drawn[count:][:MOST_KNOWN]
        if key is None:
            self.held, self.truth = Held(export, torch.tensor(sampled)), None
            return
        if len(key.tau) != vocabulary:
            raise InputError(f"the key is for {len(key.tau)} ids, and the export has {vocabulary}")
        plain = key.inverse[given].astype(np.int64)
        log = [key.to_server(document) for document in text.sent]
        common = [token for token, _ in Counter(token for document in log for token in document).most_common()]
        known = set(given.tolist())
        asked = [token for token in dict.fromkeys([*common, *sampled]) if token not in known]
        pairs = torch.from_numpy(np.stack([plain, given], 1))
        self.held = Held(export, torch.tensor(asked), log, pairs)
        self.truth = Truth(key.inverse, sampled, text.sent, plain.tolist())

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
            return _outcome(attack, name, _unmeasured(f"needs {', '.join(sorted(absent))}; {NO_KEY}"))
        reader = reader or attack.prepare(public)
        started = time.process_time()
        claim = reader.read(self.held)
        seconds = time.process_time() - started
        if isinstance(claim, NoClaim):
            return _outcome(attack, name, _unmeasured(claim.reason))
        figures = _unmeasured(NO_KEY) if self.truth is None else self.truth.score(claim)
        return _outcome(attack, name, figures, claim.facts, seconds)


def _outcome(
    attack: Attack,
    name: str,
    figures: Mapping[str, Figure | Unmeasured],
    facts: Mapping[str, float] = MappingProxyType({}),
    seconds: float | None = None,
) -> Outcome:
    card = attack.card
    return Outcome(
        attack=name,
        label=card.label,
        needs=sorted(card.needs),
        figures=dict(figures),
        facts=dict(facts),
        seconds=seconds,
    )


def _unmeasured(reason: str) -> dict[str, Unmeasured]:
    return dict.fromkeys(SHARES, Unmeasured(reason))


def check_same_shape(base: Weights, export: Weights) -> None:
    """Refuse a base that the export cannot have been made from.

    Raises:
        InputError: vocabularies, layers or FFN channels differ.
    """
    for what in ("vocabulary", "layers", "channels"):
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
