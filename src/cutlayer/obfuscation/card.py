"""What each mode does, for whom, and where it departs from the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from cutlayer.obfuscation.families import Mode

SOURCE: Final = "Lin et al. 2026, AloePri (arXiv 2603.01499), Algorithms 1 and 2, sections 5.2 and 5.4"

HIDES: Final = (
    "Text of requests and answers from readers of the host's logs, gateways, cache dumps and dashboards who do not have "
    "both the obfuscated and the original weights."
)
DOES_NOT_HIDE: Final = (
    "Anything from a host that has, or can guess, the public model: products of two obfuscated matrices contain neither "
    "key nor noise, and give the permutation back. Nor, with time, from frequency analysis of long logs, nor from anyone "
    "who gets the client's key. Lengths, timing and repeated prompts stay visible. For a hostile host use confidential "
    "hardware or run locally."
)


class Card(msgspec.Struct, frozen=True):
    """Of one mode.

    Args:
        mode: its name.
        keys: what the weights are multiplied by.
        effect: on the model's answers.
        deviations: from the paper.
    """

    mode: str
    keys: str
    effect: str
    deviations: str


_SHARED: Final = (
    "Prompts travel as token ids, not as the permuted text, which does not survive being tokenised again. All ids are "
    "permuted, special and unused ones too. Queries and keys are reordered by the same Z_b, not by Z_b and its transpose. "
    "U is orthogonal times mild scales, not Gaussian. Router vectors of experts are not normalised. Models with norms on "
    "queries and keys get signs instead of angles, and scales that stand visibly in those norms."
)

CARDS: Final[dict[Mode, Card]] = {
    "exact": Card(
        mode="exact",
        keys=(
            "One isometric P̂ for all writers, fresh junk in every reader where D > d; R, H and U per key-value head; "
            "permutations of heads, FFN channels, experts and token ids. No noise."
        ),
        effect="None beyond rounding.",
        deviations=f"Isometric keys replace Algorithm 1: with them RMSNorm is exact on an unmodified engine. {_SHARED}",
    ),
    "noisy": Card(
        mode="noisy",
        keys="As exact, and Gaussian noise of α_e and α_h standard deviations on embedding and output head.",
        effect="Grows with the noise, faster the smaller the model; the presets are far below the paper's (1.0, 0.2).",
        deviations=f"As exact. {_SHARED}",
    ),
    "paper": Card(
        mode="paper",
        keys=(
            "Algorithm 1 with λ and h = (D − d)/2; Algorithm 2 with windowed permutation of rotary pairs (β, γ); noise α_e "
            "and α_h; κ in every norm."
        ),
        effect="Changes answers even without noise, since RMSNorm is only nearly kept; with per-writer keys much more.",
        deviations=(
            "Rows of C and columns of G lie in the null spaces, and their coefficients have scale 1/√d. One C serves all "
            "writers unless per-writer keys are asked for. κ has the factor √(d/D) of an engine that averages over D "
            "values, ε follows by κ², and κ is that of random directions, not calibrated on text. Rotary frequencies are "
            "the engine's own. D is rounded up to a multiple of the heads, so h is 128 only where that fits. "
            f"{_SHARED}"
        ),
    ),
    "monomial": Card(
        mode="monomial",
        keys="A permutation with signs of the hidden channels; everything else as exact.",
        effect="None beyond rounding.",
        deviations=(
            "Hidden keys are no random matrices: sorting the entries of a row already matches it to the base. The mode is "
            f"for models with norms between writer and stream (gemma 2 and 3), which commute with nothing else. {_SHARED}"
        ),
    ),
}
