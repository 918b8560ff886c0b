"""Metrics against other implementations, hand-computed examples, and the traps of published code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from cutlayer.audit.metrics.advantage import advantage
from cutlayer.audit.metrics.attribute import attribute_advantage, balanced_accuracy
from cutlayer.audit.metrics.bag import bag_precision, bag_recall, token_set_f1
from cutlayer.audit.metrics.content import content_accuracy, is_content, stop_words
from cutlayer.audit.metrics.documents import over_documents
from cutlayer.audit.metrics.edit import edit_distance
from cutlayer.audit.metrics.entities import canary_exact_match, entity_recall
from cutlayer.audit.metrics.overlap import bleu_4, rouge
from cutlayer.audit.metrics.positional import exact_match, token_accuracy
from cutlayer.audit.metrics.rank import spearman
from cutlayer.audit.metrics.scores import SampleScores, score
from cutlayer.audit.metrics.summary import METRICS, advantages, summarise
from cutlayer.audit.metrics.unmeasured import Unmeasured
from cutlayer.errors import InputError
from cutlayer.records.record import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECES = [
    "<s>",
    "<pad>",
    "The",
    " patient",
    " in",
    "sul",
    " Ann",
    " Ray",
    " 47",
    "11",
    ".",
    " of",
    "\n",
    "é",
    "你",
    " is",
    "?!",
    "\ufffd",
]
SPECIAL = frozenset({0, 1})
IDS = {piece: i for i, piece in enumerate(PIECES)}


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] for i in ids if i not in SPECIAL)


def ids(*pieces: str) -> list[int]:
    return [IDS[piece] for piece in pieces]


def figure(result: Figure | Unmeasured) -> Figure:
    assert isinstance(result, Figure)
    return result


# Tokens


def test_the_start_token_does_not_count() -> None:
    truth, guess = ids("<s>", "The", " patient"), ids("<s>", "The", " Ann")
    assert token_accuracy(truth, guess) == pytest.approx(2 / 3)
    assert token_accuracy(truth, guess, SPECIAL) == 0.5
    assert exact_match(ids("<s>", "The"), ids("The", "The"), SPECIAL) == 1


def test_special_tokens_are_left_out_where_the_truth_has_them_only() -> None:
    """Guessing padding must not make a position disappear."""
    assert token_accuracy(ids("The", " Ann"), ids("The", "<pad>"), SPECIAL) == 0.5


def test_a_short_guess_is_refused() -> None:
    for metric in (token_accuracy, exact_match):
        with pytest.raises(InputError, match="guess of 1 tokens for 2"):
            metric([5, 6], [5])


def test_bags_count_copies_and_divide_by_the_right_length() -> None:
    truth, guess = [5, 5, 6, 7, 8], [5, 5, 5, 6]
    assert bag_precision(truth, guess) == 3 / 4
    assert bag_recall(truth, guess) == 3 / 5
    assert token_set_f1(truth, guess) == pytest.approx(2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4))


def test_padding_is_no_part_of_a_bag() -> None:
    assert bag_precision([0, 5, 6], [0, 5, 1], SPECIAL) == 1
    assert bag_recall([0, 5, 6], [0, 5, 1], SPECIAL) == 0.5


TOKENS = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(TOKENS)
def test_order_matters_to_positions_only(truth: list[int]) -> None:
    guess = sorted(truth)
    assert bag_precision(truth, guess) == bag_recall(truth, guess) == token_set_f1(truth, guess) == 1
    assert (exact_match(truth, guess) == 1) == (truth == guess) == (token_accuracy(truth, guess) == 1)


@given(st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=1, max_size=12))
def test_relations_between_token_metrics(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (list(side) for side in zip(*pairs, strict=True))
    right, recall, distance = token_accuracy(truth, guess), bag_recall(truth, guess), edit_distance(truth, guess)
    assert isinstance(right, float)
    assert isinstance(recall, float)
    assert isinstance(distance, float)
    assert right <= recall == bag_precision(truth, guess)
    assert 1 - recall - 1e-12 <= distance <= 1 - right + 1e-12
    assert token_accuracy([0, *truth], [3, *guess], SPECIAL) == right


def test_edit_distance_is_over_the_truth() -> None:
    assert edit_distance([1, 2, 3, 4], [2, 3, 4, 5]) == 0.5  # one deletion, one insertion
    assert edit_distance([1], [2, 2, 2]) == 3


# Content


@pytest.mark.parametrize("piece", [" patient", "sul", " 47", "é", "你", "\ufffd", "😀", " Ann"])
def test_content(piece: str) -> None:
    assert is_content(piece)


@pytest.mark.parametrize("piece", ["The", " of", ".", "?!", "\n", " ", "", "'s", "€", "\u200b", "’ll", "``", " IN"])
def test_no_content(piece: str) -> None:
    assert not is_content(piece)


def test_stop_words_are_few_and_clean() -> None:
    assert 150 <= len(stop_words()) <= 250
    assert all(word.isalpha() and word.islower() for word in stop_words())


def test_content_accuracy_looks_at_the_true_token() -> None:
    truth = ids("<s>", "The", " patient", " is", " Ann", ".")
    guess = ids("<s>", " Ann", " patient", " is", " of", ".")
    assert content_accuracy(truth, guess, decode, SPECIAL) == 0.5
    assert isinstance(content_accuracy(ids("The", "."), ids("The", "."), decode), Unmeasured)


# Texts


def test_rouge_of_a_worked_example() -> None:
    """Counted by hand: 5 of 6 words, 3 of 5 pairs, a common subsequence of 5."""
    one, two, longest = rouge("the cat sat on the mat", "the cat lay on the mat")
    assert (one, two, longest) == (pytest.approx(5 / 6), pytest.approx(3 / 5), pytest.approx(5 / 6))


def test_no_stemming() -> None:
    assert rouge("treatments", "treatment").rouge_1 == 0


def test_texts_rouge_cannot_see_are_unmeasured_not_unread() -> None:
    assert all(isinstance(value, Unmeasured) for value in rouge("你好世界", "你好世界"))
    assert isinstance(rouge("word", "word").rouge_2, Unmeasured)
    assert rouge("word", "你好").rouge_1 == 0


def test_bleu() -> None:
    assert bleu_4("the cat sat on the mat", "the cat sat on the mat") == 1
    # precisions 5/6, 3/5, 1/4 and 1/(2·3), smoothed: no four words in a row
    expected = (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert bleu_4("the cat sat on the mat", "the cat lay on the mat") == pytest.approx(expected)
    assert bleu_4("the cat sat on the mat", "") == 0
    assert isinstance(bleu_4("three short words", "three short words"), Unmeasured)


# Entities


def test_texts_without_entities_are_unmeasured() -> None:
    assert isinstance(entity_recall([], "text", "text"), Unmeasured)
    assert isinstance(entity_recall(["cut off"], "text", "text"), Unmeasured)


def test_entities_are_whole_and_verbatim() -> None:
    truth = "Ann has 47 and C++."
    assert entity_recall(["Ann"], truth, "Anniversary") == 0
    assert entity_recall(["47"], truth, "1475") == 0
    assert entity_recall(["Ann"], truth, "ann") == 0
    assert entity_recall(["C++"], truth, "(C++)") == 1
    assert entity_recall(["Ann", "47"], truth, "47, Ann") == 1
    assert entity_recall(["Ann", "not there"], truth, "Ann") == 1


def test_canaries_are_read_at_their_place() -> None:
    truth = ids("<s>", "The", " patient", " Ann", " Ray", " is", " 47", "11", ".")
    secrets = ["Ann Ray", "4711"]

    def match(*guess: str) -> float | Unmeasured:
        return canary_exact_match(secrets, truth, ids(*guess), decode, SPECIAL)

    assert match("<pad>", ".", ".", " Ann", " Ray", ".", " 47", "11", ".") == 1
    assert match("<s>", "The", " patient", " Ann", " Ray", " is", " 47", "é", ".") == 0.5
    assert match("<s>", " Ann", " Ray", "The", " patient", " 47", "11", " is", ".") == 0  # read, but elsewhere
    assert isinstance(canary_exact_match(["absent"], truth, truth, decode), Unmeasured)
    assert isinstance(canary_exact_match([], truth, truth, decode), Unmeasured)


def test_neighbours_of_a_canary_do_not_matter_but_all_of_it_does() -> None:
    truth = ids("The", " Ann", " Ray", ".")
    for wrong in range(4):
        guess = [IDS["é"] if i == wrong else token for i, token in enumerate(truth)]
        assert canary_exact_match(["Ann Ray"], truth, guess, decode) == float(wrong in (0, 3))


# Figures over documents


def test_pooled_means_weigh_by_tokens() -> None:
    pooled = figure(over_documents([1.0, 0.0], weights=[90, 10]))
    assert pooled.value == 0.9
    assert figure(over_documents([1.0, 0.0])).value == 0.5


def test_documents_without_a_value_are_left_out_and_not_counted() -> None:
    result = figure(over_documents([None, 0.25, 0.75, None], weights=[5, 1, 1, 0]))
    assert (result.value, result.n, result.unit) == (0.5, 2, "fraction")
    assert isinstance(over_documents([None, None]), Unmeasured)
    assert isinstance(over_documents([]), Unmeasured)
    assert isinstance(over_documents([0.5], weights=[0]), Unmeasured)


def test_intervals_are_those_of_another_bootstrap() -> None:
    data = np.random.default_rng(1).beta(2, 3, size=40)
    ours = figure(over_documents(data.tolist()))
    theirs = stats.bootstrap((data,), np.mean, method="percentile", n_resamples=9999, rng=2).confidence_interval
    assert ours.value == pytest.approx(data.mean())
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.01), pytest.approx(theirs.high, abs=0.01))


def test_documents_are_resampled_not_tokens() -> None:
    """One long text against many short ones: the interval must be as wide as what one document can change."""
    wide = figure(over_documents([1.0] * 9 + [0.0], weights=[10.0] * 9 + [900.0]))
    assert wide.high - wide.low > 0.8


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.839, 1.0), (0.0, 0.0, 0.161), (0.5, 0.299, 0.701)])
def test_equal_documents_are_no_certainty(value: float, low: float, high: float) -> None:
    """Wilson limits of 20 documents."""
    result = figure(over_documents([value] * 20, weights=[64] * 20))
    assert (result.value, result.low, result.high) == (
        value,
        pytest.approx(low, abs=1e-3),
        pytest.approx(high, abs=1e-3),
    )
    one = figure(over_documents([value]))
    assert one.high - one.low > 0.6


@pytest.mark.parametrize("values", [[float("nan")], [1.5], [-0.1], [float("inf")]])
def test_values_that_are_none(values: list[float]) -> None:
    with pytest.raises(InputError, match="must be in"):
        over_documents(values)


def test_weights_that_are_none() -> None:
    for weights in ([-1.0, 1.0], [float("nan"), 1.0]):
        with pytest.raises(InputError, match="weights"):
            over_documents([0.5, 0.5], weights)
    with pytest.raises(InputError, match="1 weights for 2"):
        over_documents([0.5, 0.5], [1.0])


UNIT = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=30)
@given(st.lists(st.tuples(UNIT, UNIT, st.integers(1, 100)), min_size=1, max_size=20))
def test_properties_of_the_advantage(rows: list[tuple[float, float, int]]) -> None:
    values, prior, weights = (list(column) for column in zip(*rows, strict=True))
    result = advantage(values, prior, weights)
    if isinstance(result, Unmeasured):
        assert min(prior) == 1
        return
    assert result.low <= result.high
    assert result.value <= 1 + 1e-9
    unbeaten = advantage(prior, prior, weights)
    assert figure(unbeaten).value == pytest.approx(0, abs=1e-9)


def test_advantage_of_a_worked_example() -> None:
    result = figure(advantage([0.6, 0.8], [0.2, 0.6]))
    assert result.value == pytest.approx((0.7 - 0.4) / (1 - 0.4))
    assert figure(advantage([0.1] * 5 + [0.2], [0.5] * 6)).high < 0  # worse than not looking is shown as such


def test_advantage_needs_something_left_to_read() -> None:
    result = advantage([1.0, 1.0], [1.0, 1.0])
    assert isinstance(result, Unmeasured)
    assert "baseline" in result.reason
    assert isinstance(advantage([None, 0.5], [0.5, None]), Unmeasured)
    with pytest.raises(InputError, match="1 baseline values for 2"):
        advantage([0.5, 0.5], [0.5])


def test_advantage_pairs_documents() -> None:
    """Attack and baseline rise and fall together: unpaired intervals would be far wider."""
    prior = np.linspace(0, 0.9, 30)
    values = 1 - (1 - prior) * np.where(np.arange(30) % 2, 0.5, 0.52)
    paired = figure(advantage(values.tolist(), prior.tolist()))
    shuffled = figure(advantage(values.tolist(), np.random.default_rng(0).permutation(prior).tolist()))
    assert paired.high - paired.low < 0.02
    assert shuffled.high - shuffled.low > 0.1


def test_reading_everything_is_no_certain_advantage() -> None:
    result = figure(advantage([1.0] * 20, [0.0, 0.1] * 10))
    assert result.value == result.high == 1
    assert result.low == pytest.approx((0.839 - 0.05) / 0.95, abs=1e-3)


# Attributes

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30)


@given(
    LABELS.filter(lambda rows: len({truth for truth, _ in rows}) > 1 and {g for _, g in rows} <= {t for t, _ in rows})
)
def test_balanced_accuracy_is_scikit_learns(rows: list[tuple[str, str]]) -> None:
    truth, guess = (list(side) for side in zip(*rows, strict=True))
    result = figure(balanced_accuracy(truth, guess))
    assert result.value == pytest.approx(balanced_accuracy_score(truth, guess))
    assert result.n == len(rows)
    assert 0 <= result.low <= result.high <= 1


def test_answering_the_majority_has_no_advantage() -> None:
    truth = ["yes"] * 90 + ["no"] * 10
    assert figure(balanced_accuracy(truth, ["yes"] * 100)).value == 0.5
    assert figure(attribute_advantage(truth, ["yes"] * 100, "yes")).value == 0
    assert figure(attribute_advantage(truth, truth, "yes")).value == 1
    half = ["yes"] * 90 + ["no"] * 5 + ["yes"] * 5
    assert figure(attribute_advantage(truth, half, "yes")).value == pytest.approx(0.5)


def test_one_class_says_nothing() -> None:
    assert isinstance(balanced_accuracy(["a", "a"], ["a", "b"]), Unmeasured)
    assert isinstance(attribute_advantage(["a", "a"], ["a", "b"], "a"), Unmeasured)
    with pytest.raises(InputError, match="1 guesses for 2"):
        balanced_accuracy(["a", "b"], ["a"])


# Ranks


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=20))
def test_spearman_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = (list(side) for side in zip(*pairs, strict=True))
    result = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert isinstance(result, Unmeasured)
        return
    assert figure(result).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert figure(result).low <= figure(result).value <= figure(result).high


def test_spearman_intervals_hold_what_they_promise() -> None:
    """ρ_s = 6/π·asin(ρ/2) for normal pairs; 95 % of the intervals should hold it."""
    rng, rho, n, runs = np.random.default_rng(0), 0.6, 40, 600
    true = 6 / np.pi * np.arcsin(rho / 2)
    draws = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(runs, n))
    intervals = [figure(spearman(draw[:, 0].tolist(), draw[:, 1].tolist())) for draw in draws]
    held = np.mean([one.low <= true <= one.high for one in intervals])
    assert 0.92 < held < 0.98


def test_perfect_ranks_of_few_pairs_are_no_certainty() -> None:
    result = figure(spearman([1, 2, 3, 4, 5], [2, 3, 5, 7, 11]))
    assert (result.value, result.high) == (pytest.approx(1), pytest.approx(1))
    assert result.low < 0.7
    assert figure(spearman([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])).high > -0.7


def test_pairs_that_cannot_be_ranked() -> None:
    assert isinstance(spearman([1, 2, 3], [1, 2, 3]), Unmeasured)
    with pytest.raises(InputError, match="pairs"):
        spearman([1, 2, 3, 4], [1, 2, 3])
    with pytest.raises(InputError, match="finite"):
        spearman([1, 2, 3, float("nan")], [1, 2, 3, 4])


# All together


def test_a_sample_has_every_metric_or_a_reason() -> None:
    truth = ids("<s>", "The", " patient", " Ann", " Ray", " is", " 47", "11", ".")
    guess = ids("<s>", "The", " patient", " Ann", " Ray", " is", " 47", "é", ".")
    result = score(truth, guess, decode, SPECIAL, entities=["Ann Ray", "4711"], canaries=["4711"])
    assert (result.tokens, result.content_tokens) == (8, 5)
    assert result.token_accuracy == 7 / 8
    assert result.content_accuracy == 4 / 5
    assert (result.entity_recall, result.canary_exact_match, result.exact_match) == (0.5, 0, 0)
    assert result.edit_distance == 1 / 8
    assert result.reasons == {}
    plain = score(truth, guess, decode, SPECIAL)
    assert (plain.entity_recall, plain.canary_exact_match) == (None, None)
    assert set(plain.reasons) == {"entity_recall", "canary_exact_match"}
    assert msgspec.json.decode(msgspec.json.encode(plain), type=SampleScores) == plain


def test_a_text_of_nothing_has_no_metric_at_all() -> None:
    result = score(ids("<s>"), ids("<s>"), decode, SPECIAL, entities=["x"], canaries=["x"])
    assert all(getattr(result, name) is None for name in METRICS)
    assert set(result.reasons) == set(METRICS)
    assert all(isinstance(value, Unmeasured) for value in summarise([result]).values())


def test_a_start_token_that_was_missed_changes_nothing() -> None:
    truth = ids("<s>", "The", " patient", " Ann", " Ray", " is", " 47", "11", ".")
    perfect = score(truth, [IDS[" of"], *truth[1:]], decode, SPECIAL, ["Ann Ray"], ["Ann Ray"])
    assert perfect.edit_distance == 0
    assert all(getattr(perfect, name) == pytest.approx(1) for name in METRICS if name != "edit_distance")


def test_summaries_pool_accuracies_over_tokens_and_average_the_rest() -> None:
    long = score(ids(" Ann", " Ray", " Ann", " Ray"), ids(" Ann", " Ray", " Ann", " Ray"), decode, entities=["Ann Ray"])
    short = score(ids(" 47"), ids("é"), decode)
    figures = summarise([long, short])
    assert figure(figures["token_accuracy"]).value == 0.8
    assert figure(figures["exact_match"]).value == 0.5
    assert (figure(figures["entity_recall"]).value, figure(figures["entity_recall"]).n) == (1, 1)
    assert figures["canary_exact_match"] == Unmeasured("the text has no planted secrets")


def test_advantages_are_of_every_metric_where_more_is_more() -> None:
    truth = ids(" Ann", " Ray", " 47", "11")
    attack, prior = score(truth, truth, decode), score(truth, ids(" Ann", "é", "é", "é"), decode)
    result = advantages([attack] * 3, [prior] * 3)
    assert set(result) == set(METRICS) - {"edit_distance"}
    assert figure(result["token_accuracy"]).value == 1
    none = advantages([prior] * 3, [attack] * 3)
    assert isinstance(none["token_accuracy"], Unmeasured)
