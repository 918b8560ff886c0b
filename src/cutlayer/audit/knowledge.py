"""Who attacks, as it is named on the command line.

W2                      has all public weights, text of its own and a language model
W2:prior=false          the same without a language model
W2:auxiliary=false      the same without text of its own that went through the defence
W1:base=MODEL           has the public base of a private fine-tune, and text it ran through that
W0                      has no weights, only text of its own that went through the client

Whatever the attacker has besides, it knows the defence's public law, never its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import msgspec

from cutlayer.attacks.attack import Knowledge
from cutlayer.errors import InputError
from cutlayer.registry import Spec

if TYPE_CHECKING:
    from cutlayer.attacks.attack import Auxiliary, Capability, Threat
    from cutlayer.attacks.prior import Prior
    from cutlayer.audit.scene import Scene


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    auxiliary: bool = True
    prior: bool = True
    base: str | None = None


class ThreatModel(msgspec.Struct, frozen=True):
    """An attacker.

    Attributes:
        knowledge: of the client's weights.
        auxiliary: whether it has text of its own.
        prior: whether it has a language model.
        base: the public model it has instead of the private one, for W1.
    """

    knowledge: Knowledge
    auxiliary: bool = True
    prior: bool = True
    base: str | None = None

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """Read a specification.

        Raises:
            InputError: unknown, or W1 without its base, or a base where there is none.

        Examples:
            >>> str(ThreatModel.parse("W2:prior=false"))
            'W2:prior=false'
        """
        spec = Spec.parse(text)
        options = spec.read(_Options)
        if spec.name not in get_args(Knowledge):
            raise InputError(
                f"unknown threat {text!r}; available: W0, W1:base=MODEL, W2, each with auxiliary= and prior="
            )
        knowledge: Knowledge = spec.name  # type: ignore[assignment]
        if (knowledge == "W1") != (options.base is not None):
            raise InputError(f"threat {text!r}: W1, and only W1, needs base=MODEL, the public model it was tuned from")
        return cls(knowledge, options.auxiliary, options.prior, options.base)

    def __str__(self) -> str:
        said = {"base": self.base} if self.base else {}
        lacks = {name: "false" for name in ("auxiliary", "prior") if not getattr(self, name)}
        return str(Spec(self.knowledge, {**said, **lacks}))

    def lacks(self) -> set[Capability]:
        """Capabilities an attack may need that this attacker does not have."""
        absent: set[Capability] = set()
        if self.knowledge == "W0":
            absent |= {"embedding", "head"}
        if not self.auxiliary:
            absent.add("auxiliary")
        if not self.prior:
            absent.add("prior")
        return absent

    def why(self, absent: set[Capability]) -> str:
        """Why an attack cannot be run, in words."""
        return f"needs {', '.join(sorted(absent))}, which {self} does not have"

    def threat(
        self, scene: Scene, auxiliary: Auxiliary | None, prior: Prior | None, repeats: int, seed: int, device: str
    ) -> Threat:
        """What this attacker knows.

        Args:
            scene: what it has weights of: the victim's, under W1 the public base's.
            auxiliary: its own text.
            prior: its language model.
            repeats: sessions each prompt is seen in.
            seed: of its own randomness.
            device: where it computes.
        """
        return scene.threat(
            auxiliary if self.auxiliary else None, prior if self.prior else None, self.knowledge, repeats, seed
        )._replace(device=device)
