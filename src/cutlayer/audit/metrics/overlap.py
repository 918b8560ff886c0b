"""ROUGE and BLEU of texts, by the field's packages, with settings stated because scores depend on them.

ROUGE: rouge-score, F1, no stemming; it lowercases and sees only the letters a to z and digits. BLEU: sacrebleu's sentence
score over 100, signature ``nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp``.

Footgun: both packages answer 0 for texts they cannot see, e.g. ROUGE for Chinese. That would read as "no leak", so such
texts are unmeasured.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.audit.metrics.unmeasured import Unmeasured

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    from sacrebleu.metrics.bleu import BLEU

_ORDER: Final = 4


class Rouge(NamedTuple):
    """F1 of each variant."""

    rouge_1: float | Unmeasured
    rouge_2: float | Unmeasured
    rouge_l: float | Unmeasured


def rouge(truth: str, guess: str) -> Rouge:
    """ROUGE-1, ROUGE-2 and ROUGE-L."""
    words = _words(truth)
    if not words:
        none = Unmeasured("ROUGE sees no words of a to z and digits in the text")
        return Rouge(none, none, none)
    scores = _rouge().score(truth, guess)
    one, two, longest = (float(scores[name].fmeasure) for name in ("rouge1", "rouge2", "rougeL"))
    return Rouge(one, two if words > 1 else Unmeasured("ROUGE-2 needs two words"), longest)


def bleu_4(truth: str, guess: str) -> float | Unmeasured:
    """BLEU-4 of one text, in [0, 1]."""
    bleu = _bleu()
    words = len(bleu.tokenizer(truth).split())
    if words < _ORDER:
        return Unmeasured(f"BLEU-4 needs {_ORDER} words")
    return min(1.0, float(bleu.sentence_score(guess, [truth]).score) / 100)


def _words(text: str) -> int:
    from rouge_score.tokenize import tokenize  # type: ignore[import-untyped]

    return len(tokenize(text, None))


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


@cache
def _bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
