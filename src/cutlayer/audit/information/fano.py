"""What an attack's success says about the information it had, and the reverse.

Fano's inequality: whoever guesses one of M values with error P_e holds I ≥ H − h_b(P_e) − P_e log₂(M − 1) bits.

Footgun: a weak attack proves little information, never its absence.

Notation: H entropy of the secret in bits, M values, P_e error probability, h_b binary entropy.
"""

from __future__ import annotations

import math

from cutlayer.errors import InputError


def information_from_accuracy(accuracy: float, entropy: float, candidates: int) -> float:
    """Least bits an attacker with this accuracy must have had; 0 where success needs none.

    Args:
        accuracy: 1 − P_e.
        entropy: H, at most log₂ M.
        candidates: M.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> information_from_accuracy(1.0, 10.0, 1024)
        10.0
    """
    _check(entropy, candidates)
    if not 0 <= accuracy <= 1:
        raise InputError(f"an accuracy of {accuracy}: give a share between 0 and 1")
    return max(0.0, entropy - _confusion(1 - accuracy, candidates))


def accuracy_from_information(information: float, entropy: float, candidates: int) -> float:
    """Largest accuracy that so many bits allow.

    Args:
        information: I in bits.
        entropy: H, at most log₂ M.
        candidates: M.

    Raises:
        InputError: a value is out of range.
    """
    _check(entropy, candidates)
    if information < 0:
        raise InputError(f"an information of {information} bits: it cannot be negative")
    needed = entropy - information
    # h_b(P) + P log₂(M − 1) rises up to P = 1 − 1/M, so the smallest error that explains what is missing is unique.
    low, high = 0.0, 1 - 1 / candidates
    if needed <= 0:
        return 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _confusion(middle, candidates) < needed else (low, middle)
    return 1 - high


def _confusion(error: float, candidates: int) -> float:
    """Most bits about the secret that an attacker with this error may still lack."""
    binary = -sum(p * math.log2(p) for p in (error, 1 - error) if p > 0)
    return binary + error * math.log2(candidates - 1)


def _check(entropy: float, candidates: int) -> None:
    if candidates < 2 or not 0 <= entropy <= math.log2(candidates) + 1e-9:
        raise InputError(
            f"an entropy of {entropy} bits over {candidates} values: give at least 2 values and 0 ≤ H ≤ log₂ M"
        )
