"""What guesses, and what it learns from.

A speculator never decides what is said: whatever it guesses, the tokens of an answer have the law of plain sampling. It only
decides how many of them one round trip brings.

Notation: T rows of one verification, V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from cutlayer.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from cutlayer.client.speculation.draft import Draft
    from cutlayer.client.trusted import Trusted


class States(NamedTuple):
    """Hidden states of the rows at the two ends of the server's part, each [T, D]."""

    leaving: torch.Tensor
    """Before any defence."""
    returned: torch.Tensor


class Verified(NamedTuple):
    """What one round trip showed: T rows of tokens went through the model, as a tree."""

    base: int
    """Position of the first row."""
    tokens: Sequence[int]
    """[T]"""
    parents: Sequence[int]
    """[T], the row each one follows; −1 for the first, which follows position `base` − 1."""
    logits: torch.Tensor
    """[T, V] on the CPU, before penalties and temperature: what the model would say after each row. In the dtype they were
    computed in: few of them are needed in float32, and those of a large tree are megabytes to copy."""
    kept: Sequence[int]
    """The rows that turned out right, a path that begins with row 0; of a prompt, all."""
    states: States


class Speculator(Protocol):
    """Guesses for one session."""

    wants_prompt: bool
    """Whether `observe` is to see the prompt as well, which costs the output head for every row of it."""
    adaptive: bool
    """Whether a draft is cut to the size that pays. Published systems that send whatever they guess are not."""

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """Guess what follows.

        Args:
            ids: prompt and answer so far, at least one; the last one has not been through the model yet.
            most: nodes at most.
        """
        ...

    def observe(self, seen: Verified) -> None:
        """Learn from a round trip: the prefill's chunks, then each verification."""
        ...

    def close(self) -> None:
        """Keep what outlives the session."""
        ...


@runtime_checkable
class Kind(Protocol):
    """A kind of speculator."""

    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """Configure it for one session.

        Args:
            spec: its options.
            trusted: what this side holds of the model.

        Raises:
            InputError: an option is unknown, missing or out of range.
        """
        ...


SPECULATORS: Final[Registry[Kind]] = Registry(
    "speculators",
    Kind,  # type: ignore[type-abstract]
    {
        name: f"cutlayer.client.speculation.{name}:KIND"
        for name in ("lookup", "recycling", "cunningham", "lookahead", "model", "head", "auto")
    },
)


def build_speculator(spec: str, trusted: Trusted) -> Speculator:
    """Read ``NAME[:KEY=VALUE,…]`` and build the speculator.

    Raises:
        UnknownNameError: no such kind.
        InputError: malformed, or as `Kind.build`.
    """
    parsed = Spec.parse(spec)
    return SPECULATORS.get(parsed.name).build(parsed, trusted)
