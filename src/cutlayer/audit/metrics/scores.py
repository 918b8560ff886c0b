"""All metrics of one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cutlayer.audit.metrics.bag import bag_precision, bag_recall, token_set_f1
from cutlayer.audit.metrics.content import content_accuracy, content_positions
from cutlayer.audit.metrics.edit import edit_distance
from cutlayer.audit.metrics.entities import canary_exact_match, entity_recall
from cutlayer.audit.metrics.overlap import bleu_4, rouge
from cutlayer.audit.metrics.positional import exact_match, scored, token_accuracy
from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class SampleScores(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one guess is worth. None is a metric this prompt has not; `reasons` says why.

    Attributes:
        tokens: positions that count.
        content_tokens: of these, neither stop words nor punctuation.
        token_accuracy: see `positional`.
        exact_match: see `positional`.
        content_accuracy: see `content`.
        bag_precision: see `bag`.
        bag_recall: see `bag`.
        token_set_f1: see `bag`.
        edit_distance: see `edit`; the one metric where less is a better attack.
        rouge_1: see `overlap`.
        rouge_2: see `overlap`.
        rouge_l: see `overlap`.
        bleu_4: see `overlap`.
        entity_recall: see `entities`.
        canary_exact_match: see `entities`.
        reasons: metric → why it is None.
    """

    tokens: int
    content_tokens: int
    token_accuracy: float | None
    exact_match: float | None
    content_accuracy: float | None
    bag_precision: float | None
    bag_recall: float | None
    token_set_f1: float | None
    edit_distance: float | None
    rouge_1: float | None
    rouge_2: float | None
    rouge_l: float | None
    bleu_4: float | None
    entity_recall: float | None
    canary_exact_match: float | None
    reasons: dict[str, str]


def score(
    truth_ids: Sequence[int],
    guess_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    special: Collection[int] = frozenset(),
    entities: Sequence[str] = (),
    canaries: Sequence[str] = (),
) -> SampleScores:
    """Score a guess.

    Args:
        truth_ids: [T] ids that were sent.
        guess_ids: [T] ids that were read.
        decode: ids → text.
        special: special and padding ids. Positions where the truth has one do not count.
        entities: of the prompt.
        canaries: secrets planted in the prompt; also give them as entities if they should count as such.

    Raises:
        InputError: the lengths differ.
    """
    truth, guess = scored(truth_ids, guess_ids, special)
    truth_text, guess_text = decode(truth), decode(guess)
    overlap = rouge(truth_text, guess_text)
    results: dict[str, float | Unmeasured] = {
        "token_accuracy": token_accuracy(truth, guess),
        "exact_match": exact_match(truth, guess),
        "content_accuracy": content_accuracy(truth, guess, decode),
        "bag_precision": bag_precision(truth, guess, special),
        "bag_recall": bag_recall(truth, guess, special),
        "token_set_f1": token_set_f1(truth, guess, special),
        "edit_distance": edit_distance(truth, guess),
        **overlap._asdict(),
        "bleu_4": bleu_4(truth_text, guess_text),
        "entity_recall": entity_recall(entities, truth_text, guess_text),
        "canary_exact_match": canary_exact_match(canaries, truth, guess, decode),
    }
    return SampleScores(
        tokens=len(truth),
        content_tokens=len(content_positions(truth, decode)),
        reasons={name: value.reason for name, value in results.items() if isinstance(value, Unmeasured)},
        **{name: None if isinstance(value, Unmeasured) else value for name, value in results.items()},
    )
