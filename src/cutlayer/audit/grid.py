"""The grid of an audit: every cut with every defence, against every attack of every attacker.

    cells = expand(layers=30, cuts=["2:-2"], defences=["none", "gaussian:relative=0.5"])

Specifications may hold commas, so a list written with commas is taken apart at those that start a new name.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.attacks.attack import build_attack
from cutlayer.audit.knowledge import ThreatModel
from cutlayer.defences.defence import MECHANISMS
from cutlayer.errors import InputError
from cutlayer.registry import Spec
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BASELINE: Final = "prior-only"
"""The attack that looks at nothing; every other is measured against it."""
DEFAULT_ATTACKS: Final = ("nearest", "ridge", "mlp", "search")
AGAINST_NOISE: Final = ("map-beam", "actinv:steps=50")
"""Added by default where there is a defence: one weighs a language model against the noise, the other fits embeddings and stops
before it fits the noise too."""
AGAINST: Final[dict[str, tuple[str, ...]]] = {"permute": ("vma",), "pripert": ("simulate-and-match",)}
"""Added by default for one defence, which the others are not adapted to."""
ADAPTED: Final = frozenset({"search", "map-beam", "vma", "simulate-and-match"})
"""Attacks that use the defence's own law. A defence that only others tried is not known to protect anything."""
MAX_CELLS: Final = 10_000

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9]+")


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing to measure.

    Attributes:
        cut: as it was asked for.
        span: the cut in layers of the model.
        defence: specification.
        attack: specification.
        threat: who attacks, see `cutlayer.audit.knowledge`.
    """

    cut: str
    span: Cut
    defence: str
    attack: str
    threat: str

    @property
    def key(self) -> str:
        """A file name's worth of identity: the same cell has the same key in every directory of one model.

        Examples:
            >>> Cell(cut="2:-2", span=Cut(2, 28, 30), defence="none", attack="ridge", threat="W2").key
            '2_28-none-ridge-W2-55bde3c0'
        """
        parts = (str(self.span), self.defence, self.attack, self.threat)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
        return "-".join([*(_UNSAFE.sub("_", part)[:40] for part in parts), digest])

    @property
    def setting(self) -> tuple[Cut, str]:
        """What a user would choose: the cut and the defence."""
        return self.span, self.defence

    def __str__(self) -> str:
        return f"{self.attack} as {self.threat} on {self.cut} with {self.defence}"


def expand(
    layers: int,
    cuts: Iterable[str],
    defences: Iterable[str] = ("none",),
    attacks: Sequence[str] | None = None,
    threats: Iterable[str] = ("W2",),
) -> list[Cell]:
    """Every combination, each once, in the order given.

    Args:
        layers: of the model.
        cuts: as ``A:B``.
        defences: specifications.
        attacks: specifications; None is `DEFAULT_ATTACKS`, and `AGAINST_NOISE` and `AGAINST` it where there is a defence.
        threats: specifications.

    Raises:
        CutError: a cut does not fit the model.
        UnknownNameError: no such defence or attack.
        InputError: a specification is malformed, or there are no cells, or absurdly many.
    """
    chosen = [(text, Cut.parse(text, layers)) for text in cuts]
    spoken = [_defence(text) for text in defences]
    known = [str(ThreatModel.parse(text)) for text in threats]
    asked = None if attacks is None else [_attack(text) for text in attacks]
    cells: dict[str, Cell] = {}
    for text, span in chosen:
        for defence in spoken:
            against = asked or _usual(defence)
            for threat in known:
                for attack in against:
                    cell = Cell(cut=text, span=span, defence=defence, attack=attack, threat=threat)
                    cells.setdefault(cell.key, cell)
                    if len(cells) > MAX_CELLS:
                        raise InputError(
                            f"this grid has more than {MAX_CELLS} cells; give fewer cuts, defences or attacks"
                        )
    if not cells:
        raise InputError("the grid is empty; give at least one cut, defence, attack and threat")
    return list(cells.values())


def _usual(defence: str) -> tuple[str, ...]:
    """The attacks a defence is given by default."""
    if defence == "none":
        return DEFAULT_ATTACKS
    return (*DEFAULT_ATTACKS, *AGAINST_NOISE, *AGAINST.get(Spec.parse(defence).name, ()))


def split_specs(texts: Iterable[str]) -> list[str]:
    """Take lists of specifications apart; a piece without a name of its own belongs to the one before.

    Examples:
        >>> split_specs(["none,gaussian:sigma=1,clip=40", "topk:keep=0.1"])
        ['none', 'gaussian:sigma=1,clip=40', 'topk:keep=0.1']
    """
    specs: list[str] = []
    for text in texts:
        fresh = True
        for piece in text.split(","):
            if "=" in piece and ":" not in piece.partition("=")[0] and not fresh:
                specs[-1] += f",{piece}"
            elif piece.strip():
                specs.append(piece.strip())
            fresh = False
    return specs


def _defence(text: str) -> str:
    spec = Spec.parse(text)
    MECHANISMS.get(spec.name)
    return str(spec)


def _attack(text: str) -> str:
    build_attack(text)  # a wrong option is to be refused before hours of work
    return str(Spec.parse(text))
