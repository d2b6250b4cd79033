"""Merging of ratings, calibration and figures of the reward model against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from reward.calibrate import calibration_error, decided_logits, fit_temperature, symmetric_probabilities
from reward.data import Pair
from reward.evaluate import accuracy, differences, rater_agreement, report
from reward.score import RewardScale
from rlhf.core.records import Preference


def pair(chosen: int, rejected: int, **changes: Any) -> Pair:
    values: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"} | changes
    if values.get("tie"):
        values["margin"] = 0
    return Pair(chosen, rejected, Preference.model_validate(values))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_calibration_recovers_a_known_temperature(temperature: float) -> None:
    generator = np.random.default_rng(0)
    gaps = np.abs(generator.normal(size=20_000)) * 3
    first_wins = generator.random(20_000) < expit(gaps / temperature)
    differences_of_chosen = np.where(first_wins, gaps, -gaps)
    found, _ = fit_temperature(differences_of_chosen, np.zeros(20_000))
    assert found == pytest.approx(temperature, rel=0.05)
    assert calibration_error(differences_of_chosen / found) < 0.02
    assert calibration_error(differences_of_chosen / temperature / 5) > 0.05


def test_calibration_is_bounded_where_the_data_say_too_much() -> None:
    decided = np.zeros(2)
    assert fit_temperature(np.array([1.0, 2.0]), decided)[0] == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(np.array([-1.0, -2.0]), decided)[0] == pytest.approx(20, rel=0.01)


def test_answers_that_do_not_count_do_not_cool_the_temperature() -> None:
    """A third of the answers are coins: by all alike the scores seem to say less than they do."""
    rng = np.random.default_rng(0)
    delta = rng.normal(size=30_000)
    read = np.arange(len(delta)) % 3 > 0
    first = np.where(read, rng.random(len(delta)) < 1 / (1 + np.exp(-delta)), rng.random(len(delta)) < 0.5)
    chosen, decided = np.where(first, delta, -delta), np.zeros(len(delta))
    weighed, alone = (
        fit_temperature(chosen, decided, weights=read.astype(float))[0],
        fit_temperature(chosen[read], decided[read])[0],
    )
    assert weighed == pytest.approx(alone, rel=1e-3)
    assert weighed == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(chosen, decided)[0] > 1.4
    tie = rng.random(len(delta)) < 0.2
    ours = fit_temperature(chosen, tie, "davidson", 0.0, weights=read.astype(float))
    assert ours == pytest.approx(fit_temperature(chosen[read], tie[read], "davidson", 0.0), rel=1e-2)
    assert calibration_error(chosen, read.astype(float)) == pytest.approx(calibration_error(chosen[read]))


@pytest.mark.parametrize("kind", ["davidson", "rao-kupper"])
def test_temperature_and_tie_logit_are_found_together(kind: Any) -> None:
    """Outcomes drawn from the loss's own probabilities at temperature 2 and tie logit -0.4, with scores of any unit."""
    generator = np.random.default_rng(1)
    d, tie_logit = generator.normal(size=30_000), -0.4
    if kind == "davidson":
        weight = np.stack([np.exp(d / 2), np.full(len(d), np.exp(tie_logit)), np.exp(-d / 2)])
        first, tie, _ = weight / weight.sum(0)
    else:
        eta = np.log1p(np.exp(tie_logit))
        first = expit(d - eta)
        tie = 1 - first - expit(-d - eta)
    draw = generator.random(len(d))
    said_tie = (draw >= first) & (draw < first + tie)
    of_chosen = np.where(draw < first, d, np.where(said_tie, d, -d))
    temperature, found = fit_temperature(2 * of_chosen, said_tie, kind, 1.0)
    assert temperature == pytest.approx(2, rel=0.05)
    assert found == pytest.approx(tie_logit, abs=0.05)
    decided = ~said_tie
    logits = decided_logits(kind, of_chosen[decided], tie_logit)
    assert calibration_error(logits) < 0.02
    # without any tie nothing is learned about them, and the temperature is that of who wins
    temperature, kept = fit_temperature(2 * of_chosen[decided], said_tie[decided], kind, tie_logit)
    assert temperature == pytest.approx(2, rel=0.08)
    assert kept == tie_logit


def test_who_wins_where_one_does() -> None:
    """Rao-Kupper with theta = e^eta = 2 at a difference of ln 4: P(first) = 4 / (4 + 2) = 2/3, P(second) =
    1 / (1 + 2 * 4) = 1/9, so 6 to 1. Davidson's tie takes alike from both: 4 to 1."""
    d, tie_logit = np.array([math.log(4), 0.0, -math.log(4)]), math.log(math.expm1(math.log(2)))
    assert decided_logits("rao-kupper", d, tie_logit).tolist() == pytest.approx(
        [math.log(6), 0, -math.log(6)]
    )
    assert decided_logits("davidson", d, tie_logit).tolist() == d.tolist()
    scale = RewardScale(0.0, 1.0, 2.0, tie_logit=tie_logit, pair_loss="rao-kupper")
    assert scale.logits(2 * d).tolist() == pytest.approx([math.log(6), 0, -math.log(6)])


def test_each_comparison_is_seen_from_both_sides() -> None:
    probabilities, outcomes = symmetric_probabilities(np.array([math.log(3)]))
    assert probabilities.tolist() == pytest.approx([0.75, 0.25])
    assert outcomes.tolist() == [1, 0]


def test_accuracy_counts_equal_scores_half_and_leaves_ties_out() -> None:
    scores = np.array([2.0, 1.0, 1.0, 0.0])
    pairs = [pair(0, 1), pair(1, 0), pair(1, 2), pair(0, 3, tie=True), pair(0, 3)]
    # right, wrong, equal, left out, right: (1 + 0 + 0.5 + 1) / 4
    interval = accuracy(scores, pairs, seed=0)
    assert interval is not None
    assert interval.mean == pytest.approx(2.5 / 4)
    assert differences(scores, pairs).tolist() == [1, -1, 0, 2, 2]
    assert accuracy(scores, [pair(0, 3, tie=True)], seed=0) is None


def test_agreement_is_over_pairs_of_different_raters() -> None:
    pairs = [
        pair(0, 1, annotator_id="a"),
        pair(0, 1, annotator_id="b"),
        pair(1, 0, annotator_id="c"),
        pair(0, 1, annotator_id="d", tie=True),  # left out
        pair(2, 3, annotator_id="a"),
        pair(2, 3, annotator_id="a"),  # the same rater again is no second opinion
    ]
    # a-b agree, a-c and b-c do not
    interval = rater_agreement(pairs, seed=0)
    assert interval is not None
    assert interval.mean == pytest.approx(1 / 3)
    assert interval.n == 3
    assert rater_agreement(pairs[-2:], seed=0) is None


def test_report_of_nothing_but_ties_has_no_accuracy() -> None:
    found = report(np.zeros(2), [pair(0, 1, tie=True)], RewardScale(0.0, 1.0, 1.0), seed=0)
    assert found == {"num_pairs": 1, "num_ties": 1}
