"""Accuracy, majority, baselines, slices, length bias and calibration against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reward.assess.baselines import baselines, by_length, by_words
from reward.assess.calibration import calibration
from reward.assess.heldout import HeldOut, choose_probes
from reward.assess.length import length_bias, within_correlation
from reward.assess.slices import Slice, length_bins, slices, thirds, worst
from reward.calibrate import brier_scores, log_losses
from reward.data import Pair
from reward.evaluate import attainable_accuracy, correctness, majority_accuracy
from reward.score import RewardScale
from rlhf.core.stats import Interval

Compare = Callable[..., Pair]


def test_brier_and_log_loss_by_hand() -> None:
    # log-odds of ln 3 are P = 3/4: Brier (1/4)^2, log-loss ln(4/3); its mirror: (3/4)^2, ln 4
    logits = np.array([math.log(3), -math.log(3), 0.0])
    assert brier_scores(logits).tolist() == pytest.approx([1 / 16, 9 / 16, 1 / 4])
    assert log_losses(logits).tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])


def test_majority_counts_each_rater_once_and_each_pair_once(compare: Compare) -> None:
    pairs = [
        *(compare("a", "b", annotator_id=name) for name in ("x", "y")),
        compare("b", "a", annotator_id="z"),  # 2 : 1 for a, which the scores say too
        compare("c", "d", prompt="q", annotator_id="x"),
        compare("d", "c", prompt="q", annotator_id="x"),  # the last word of a single rater: no majority
        compare("e", "f", prompt="r", annotator_id="x"),
        compare("f", "e", prompt="r", annotator_id="y"),  # 1 : 1
        *(compare("g", "h", prompt="s", annotator_id=name) for name in ("x", "y")),  # the scores say h
    ]
    scores = np.zeros(8)
    scores[pairs[0].chosen], scores[pairs[-1].rejected] = 1.0, 1.0
    found = majority_accuracy(scores, pairs, 0)
    assert found is not None
    assert found[0] == 0.5
    assert found.n == 2
    assert majority_accuracy(scores, pairs[3:5], 0) is None


def test_what_a_perfect_model_could_reach() -> None:
    # raters right with 0.9 agree with 0.81 + 0.01 of the time; coins agree half the time; less is half as well
    assert attainable_accuracy(0.82) == pytest.approx(0.9)
    assert attainable_accuracy(0.5) == 0.5
    assert attainable_accuracy(0.3) == 0.5
    assert attainable_accuracy(1.0) == 1.0


def test_length_goes_the_way_it_went_in_training(compare: Compare, pool: Any) -> None:
    shorter_won = [
        compare("a", "b c").preference,
        compare("d", "e f").preference,
        compare("g h", "i").preference,
    ]
    test = [compare("one", "one two"), compare("one two", "one"), compare("one", "two")]
    tokens = pool.completion_tokens
    found = by_length(shorter_won, test, lambda text: len(text.split()), tokens)
    assert found is not None
    assert found.text.startswith("shorter wins")
    assert found.correct.tolist() == [1.0, 0.0, 0.5]
    opposite = by_length([shorter_won[2]], test, lambda text: len(text.split()), tokens)
    assert opposite is not None
    assert opposite.correct.tolist() == [0.0, 1.0, 0.5]
    assert by_length([compare("a", "b").preference], test, lambda text: 1, tokens) is None


def test_bag_of_words_learns_the_word_and_only_from_training(compare: Compare) -> None:
    nouns = ("cat", "dog", "sun", "rain", "tree", "door")
    train = [compare(f"the good {a}", f"the bad {b}").preference for a in nouns for b in nouns]
    tie = compare("bad bad bad", "good", tie=True).preference
    test = [compare("good road", "bad road"), compare("bad sky", "good sky"), compare("x y", "y x")]
    found = by_words([*train, tie], train[:4], test)
    assert found is not None
    # the third has the same words on both sides
    assert found.correct.tolist() == [1.0, 0.0, 0.5]
    assert by_words([tie], [], test) is None
    assert by_words([compare("one", "two").preference], [], test) is None  # no word is there twice


def test_lead_over_a_baseline_is_paired(
    compare: Compare, held_out: Callable[..., HeldOut], pool: Any
) -> None:
    # longer wins is right in 2 of 4, the scores in 3 of 4, each on other comparisons: 0, +1, +1 and -1
    train = [compare("x y", "x", prompt="t")]
    texts = [("a b", "a"), ("c", "c d"), ("e", "e f"), ("g h", "g")]
    test = [compare(chosen, rejected, prompt=chosen) for chosen, rejected in texts]
    fitted = baselines(held_out(test, train), pool.num_tokens, pool.completion_tokens)
    found = {baseline.name: baseline for baseline in fitted}
    correct = np.array([1.0, 1.0, 1.0, 0.0])
    groups = [pair.group_id for pair in test]
    assert found["length"].accuracy(groups, 0).mean == 0.5
    lead = found["length"].lead(correct, groups, 0)
    assert lead.mean == pytest.approx(0.25)
    assert lead.low < 0 < lead.high
    assert found["random"].lead(correct, groups, 0).mean == pytest.approx(0.25)


def test_length_bins_are_cut_at_the_median_of_each_side() -> None:
    found = length_bins(np.array([-1, -2, -9, 0, 5, 5]))
    assert found == {
        "better one shorter by more than 2": [2],
        "better one shorter by up to 2": [0, 1],
        "equally long": [3],
        "better one longer by up to 5": [4, 5],
    }


def test_thirds_keep_equal_lengths_together() -> None:
    assert thirds([1, 2, 3, 4, 5, 6]) == {
        "prompt up to 2 tokens": [0, 1],
        "prompt of 3 to 4 tokens": [2, 3],
        "prompt over 4 tokens": [4, 5],
    }
    assert thirds([7, 7, 7]) == {"prompt up to 7 tokens": [0, 1, 2]}


def test_slices_by_annotator_pool_the_few(compare: Compare) -> None:
    raters = ["ann"] * 25 + ["bob"] * 25 + ["cy"] * 3 + ["dee"] * 2
    pairs = [compare(f"a{i}", f"b{i}", prompt=f"p{i}", annotator_id=name) for i, name in enumerate(raters)]
    correct = np.array([1.0] * 25 + [0.0] * 25 + [1.0, 1.0, 0.0, 1.0, 1.0])
    found = slices(correct, pairs, [1] * 200, [1] * 200, seed=0)
    assert {s.kind for s in found} == {"annotator"}  # all else is the same everywhere
    assert [(s.name, s.accuracy.n, s.accuracy.mean) for s in found] == [
        ("ann", 25, 1.0),
        ("bob", 25, 0.0),
        ("few (2 together)", 5, 0.8),
    ]
    assert [s.small for s in found] == [False, False, True]
    lowest = worst(found, Interval(0.5, 0.4, 0.6, 55))
    assert lowest is not None
    assert lowest.name == "bob"


def test_the_worst_slice_is_named_only_when_its_interval_says_so() -> None:
    overall = Interval(0.7, 0.65, 0.75, 500)
    touching = Slice("source", "web", Interval(0.6, 0.5, 0.66, 100), 50)
    below = Slice("source", "chat", Interval(0.55, 0.46, 0.64, 100), 50)
    one_prompt = Slice("source", "mail", Interval(0.1, 0.1, 0.1, 100), 1)
    assert worst([touching, one_prompt], overall) is None
    assert worst([touching, below, one_prompt], overall) is below


def test_slices_by_model_strength_and_source(compare: Compare) -> None:
    pairs = [
        compare(
            f"a{i}",
            f"b{i}",
            prompt=f"p{i}",
            margin=1.0 + i % 2,
            source="web" if i < 20 else "mail",
            chosen_model="m2" if i % 2 else "m1",
            rejected_model="m1" if i % 2 else "m3",
        )
        for i in range(40)
    ]
    correct = np.array([float(i % 2) for i in range(40)])
    found = {(s.kind, s.name): s.accuracy.mean for s in slices(correct, pairs, [1] * 99, [1] * 99, 0)}
    assert found == {
        ("source", "mail"): 0.5,
        ("source", "web"): 0.5,
        ("models", "m1 and m2"): 1.0,
        ("models", "m1 and m3"): 0.0,
        ("strength", "strength 1"): 0.0,
        ("strength", "strength 2"): 1.0,
    }


def test_within_correlation_takes_the_prompts_away() -> None:
    # within each prompt the score falls by 1 where length rises by 1, although long prompts score high
    xs = np.array([11.0, 10.0, 101.0, 100.0])
    ys = np.array([1.0, 2.0, 51.0, 52.0])
    assert np.corrcoef(xs, ys)[0, 1] > 0.9
    found = within_correlation(xs, ys, ["p", "p", "q", "q"])
    assert found is not None
    assert found.mean == pytest.approx(-1.0)
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0))
    # centred x: -1 0 1, y: 1 -2 1 (after its mean): no correlation
    flat = within_correlation(np.array([0.0, 1.0, 2.0]), np.array([3.0, 0.0, 3.0]), ["p"] * 3)
    assert flat is not None
    assert flat.mean == pytest.approx(0.0)
    assert within_correlation(np.array([0.1, 0.1]), np.array([1.0, 2.0]), ["p", "p"]) is None


def test_a_reward_that_counts_words_is_exposed(compare: Compare, pool: Any) -> None:
    # raters take the longer one in 24 of 36 unequal comparisons, a word count always
    texts = ([("a b c", "a"), ("a b", "a")] * 3 + [("a", "a b")] * 3 + [("a", "b")]) * 4
    pairs = [compare(c, r, prompt=f"p{i}") for i, (c, r) in enumerate(texts)]
    tokens = pool.completion_tokens
    scores = np.array(tokens, dtype=float)
    figures = length_bias(scores, pairs, tokens, correctness(scores, pairs), seed=0)
    assert figures["length_correlation"] == pytest.approx(1.0)
    assert figures["longer_by_model"] == 1.0
    assert figures["longer_by_raters"] == pytest.approx(24 / 36)
    assert figures["longer_excess"] == pytest.approx(12 / 36)
    assert figures["longer_excess_low"] > 0
    assert figures["accuracy_shorter_better"] == 0.0
    assert figures["accuracy_longer_better"] == 1.0
    assert [figures[f"num_{n}"] for n in ("shorter_better", "longer_better", "equally_long")] == [12, 24, 4]


def test_a_constant_reward_knows_nothing(compare: Compare, pool: Any) -> None:
    pairs = [compare("a b", "a", prompt=f"p{i}") for i in range(4)]
    tokens = pool.completion_tokens
    scores = np.full(len(tokens), 0.3)
    correct = correctness(scores, pairs)
    assert correct.tolist() == [0.5] * 4
    figures = length_bias(scores, pairs, tokens, correct, seed=0)
    assert figures["length_correlation"] is None
    assert figures["longer_by_model"] == 0.5
    calibrated = calibration(scores, pairs, pairs, RewardScale(0.0, 1.0, 1.0), 0)
    assert calibrated["brier"] == pytest.approx(0.25)
    assert calibrated["log_loss"] == pytest.approx(math.log(2))
    assert calibrated["ece"] == pytest.approx(0.0)
    assert calibrated["overconfidence"] == pytest.approx(0.0)


def test_calibration_by_hand(compare: Compare) -> None:
    # P = 3/4 for chosen four times, of which the model is wrong in one: as sure as it may be
    pairs = [compare("a", "b", prompt=f"p{i}") for i in range(3)] + [compare("b", "a", prompt="p3")]
    scores = np.zeros(8)
    for pair in pairs:
        scores[pair.chosen if pair.preference.chosen[0].content == "a" else pair.rejected] = math.log(3)
    figures = calibration(scores, pairs, pairs, RewardScale(0.0, 1.0, 1.0), 0)
    assert figures["ece"] == pytest.approx(0.0)
    assert figures["mean_confidence"] == pytest.approx(0.75)
    assert figures["overconfidence"] == pytest.approx(0.0)
    # three of (1/4)^2, one of (3/4)^2
    assert figures["brier"] == pytest.approx((3 / 16 + 9 / 16) / 4)
    # at three times the score the model is too sure: P = 27/28 against 0.75
    tripled = calibration(3 * scores, pairs, pairs, RewardScale(0.0, 1.0, 1.0), 0)
    assert tripled["overconfidence"] == pytest.approx(27 / 28 - 0.75)
    assert tripled["ece"] == pytest.approx(27 / 28 - 0.75)


def test_calibration_by_number_of_raters(compare: Compare) -> None:
    # 20 pairs of two ratings that differ (mean vote 1/2), 20 with one tie (1/2), one of three (2/3, in 'other')
    scores_of: dict[int, float] = {}
    pairs = []
    for i in range(20):
        pairs += [compare("a", "b", prompt=f"two{i}"), compare("b", "a", prompt=f"two{i}")]
        pairs.append(compare("a", "b", prompt=f"tie{i}", tie=True))
    three = [
        compare("a", "b", prompt="three"),
        compare("a", "b", prompt="three"),
        compare("b", "a", prompt="three"),
    ]
    for pair in [*pairs, *three]:
        for row, text in ((pair.chosen, pair.preference.chosen), (pair.rejected, pair.preference.rejected)):
            scores_of[row] = math.log(3) if text[0].content == "a" else 0.0
    scores = np.array([scores_of[row] for row in range(len(scores_of))])
    decided = [pair for pair in [*pairs, *three] if not pair.preference.tie]
    table = calibration(scores, [*pairs, *three], decided, RewardScale(0.0, 1.0, 1.0), 0)["by_raters"]
    assert [(row["ratings"], row["n"]) for row in table] == [(1, 20), (2, 20), ("other", 1)]
    for row in table[:2]:  # 3/4 where the votes say 1/2
        assert row["ece"] == pytest.approx(0.25)
        assert row["brier"] == pytest.approx(1 / 16)
        assert row["brier_reference"] == 0.0
    assert table[2]["brier"] == pytest.approx((3 / 4 - 2 / 3) ** 2)
    assert table[2]["brier_reference"] == pytest.approx((1 / 2 - 2 / 3) ** 2)


def test_probes_are_of_different_prompts_first(compare: Compare) -> None:
    pairs = [
        compare("a", "b", prompt="p"),
        compare("a", "c", prompt="p"),  # the same chosen completion again
        compare("d", "b", prompt="p"),
        compare("e", "f", prompt="q", tie=True),
        compare("g", "h", prompt="r"),
    ]
    two = choose_probes(pairs, 2, seed=0)
    assert {probe.prompt[0].content for probe in two} == {"p", "r"}
    assert {probe.chosen_text for probe in choose_probes(pairs, 10, seed=0)} == {"a", "d", "g"}
