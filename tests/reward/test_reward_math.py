"""Losses, merging of ratings, calibration and figures of the reward model against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from reward.calibrate import calibration_error, fit_temperature, symmetric_probabilities
from reward.data import Pair, merge_ratings
from reward.evaluate import accuracy, differences, rater_agreement, report
from reward.loss import pairwise_loss
from rlhf.core.records import Preference


def pair(chosen: int, rejected: int, **changes: Any) -> Pair:
    values: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"} | changes
    if values.get("tie"):
        values["margin"] = 0
    return Pair(chosen, rejected, Preference.model_validate(values))


def losses(
    first: float, second: float, target: float = 1.0, margin: float = 0.0, center: float = 0.0
) -> float:
    columns = [torch.tensor([value]) for value in (first, second, target, margin)]
    return pairwise_loss(*columns, center_coef=center).item()


def test_bradley_terry_by_hand() -> None:
    # a difference of ln 3: P = 3/4, loss ln(4/3) where it won, ln 4 where it lost
    assert losses(math.log(3), 0.0) == pytest.approx(math.log(4 / 3))
    assert losses(0.0, math.log(3)) == pytest.approx(math.log(4))
    assert losses(2.0, 2.0) == pytest.approx(math.log(2))


def test_a_tie_is_half_a_win_for_each() -> None:
    assert losses(math.log(3), 0.0, target=0.5) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    scores = torch.tensor([1.5, 0.0], requires_grad=True)
    pairwise_loss(scores[:1], scores[1:], torch.tensor([0.5]), torch.zeros(1), 0.0).sum().backward()
    assert scores.grad is not None
    # sigmoid(1.5) - 0.5 pulls the two together
    assert scores.grad.tolist() == pytest.approx([expit(1.5) - 0.5, 0.5 - expit(1.5)])


def test_the_margin_is_what_the_difference_has_to_exceed() -> None:
    # 2 + ln 3 against a margin of 2 is a difference of ln 3
    assert losses(2 + math.log(3), 0.0, margin=2.0) == pytest.approx(math.log(4 / 3))


def test_centring_pulls_the_sum_to_zero() -> None:
    # 0.1 * (1 + 2)^2 on top
    assert losses(1.0, 2.0, center=0.1) == pytest.approx(losses(1.0, 2.0) + 0.9)
    assert losses(3.0, -3.0, center=0.1) == pytest.approx(losses(3.0, -3.0))


def test_loss_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        pairwise_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1), torch.zeros(2), 0.0)


RATINGS = [
    pair(0, 1, weight=2.0, annotator_id="a"),
    pair(1, 0, weight=0.5, annotator_id="b"),
    pair(0, 1, weight=1.0, annotator_id="c", tie=True),
    pair(0, 1, weight=1.5, annotator_id="d", margin=3.0),
    pair(2, 1, weight=1.0, annotator_id="a"),
    pair(1, 2, weight=1.0, annotator_id="b"),
]


def single_rating_loss(
    scores: torch.Tensor, rating: Pair, smoothing: float, margin_scale: float, center: float, weighted: bool
) -> torch.Tensor:
    """The loss of one rater's answer on its own, chosen first."""
    target = 0.5 if rating.preference.tie else 1 - smoothing
    loss = pairwise_loss(
        scores[[rating.chosen]],
        scores[[rating.rejected]],
        torch.tensor([target], dtype=scores.dtype),
        torch.tensor([margin_scale * rating.preference.margin], dtype=scores.dtype),
        center,
    )
    return loss.sum() * (rating.preference.weight if weighted else 1.0)


@pytest.mark.parametrize("use_weights", [True, False])
@pytest.mark.parametrize("margin_scale", [0.0, 0.4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_merged_ratings_are_the_sum_of_single_ones_in_value_and_gradient(
    use_weights: bool, margin_scale: float, label_smoothing: float
) -> None:
    examples = merge_ratings(
        RATINGS, use_weights=use_weights, label_smoothing=label_smoothing, margin_scale=margin_scale
    )
    if not margin_scale:
        assert [(e.first, e.second) for e in examples] == [(0, 1), (1, 2)]
    start = torch.tensor([0.7, -0.2, 0.4], dtype=torch.float64)
    merged, single = start.clone().requires_grad_(), start.clone().requires_grad_()
    columns = [
        torch.tensor([getattr(e, name) for e in examples], dtype=torch.float64)
        for name in ("target", "margin", "weight")
    ]
    loss_P = pairwise_loss(
        merged[[e.first for e in examples]], merged[[e.second for e in examples]], *columns[:2], 0.05
    )
    total = (loss_P * columns[2]).sum()
    expected = sum(
        single_rating_loss(single, rating, label_smoothing, margin_scale, 0.05, use_weights)
        for rating in RATINGS
    )
    assert isinstance(expected, torch.Tensor)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    total.backward()
    expected.backward()
    torch.testing.assert_close(merged.grad, single.grad)


def test_merging_by_hand() -> None:
    found = merge_ratings(RATINGS[:3], use_weights=True, label_smoothing=0.1, margin_scale=0.0)
    # (2 * 0.9 + 0.5 * 0.1 + 1 * 0.5) / 3.5
    assert len(found) == 1
    assert (found[0].target, found[0].weight) == (pytest.approx(2.35 / 3.5), 3.5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_calibration_recovers_a_known_temperature(temperature: float) -> None:
    generator = np.random.default_rng(0)
    gaps = np.abs(generator.normal(size=20_000)) * 3
    first_wins = generator.random(20_000) < expit(gaps / temperature)
    differences_of_chosen = np.where(first_wins, gaps, -gaps)
    found = fit_temperature(differences_of_chosen, np.ones(20_000))
    assert found == pytest.approx(temperature, rel=0.05)
    assert calibration_error(differences_of_chosen, found) < 0.02
    assert calibration_error(differences_of_chosen, temperature * 5) > 0.05


def test_calibration_is_bounded_where_the_data_say_too_much() -> None:
    assert fit_temperature(np.array([1.0, 2.0]), np.ones(2)) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(np.array([-1.0, -2.0]), np.ones(2)) == pytest.approx(20, rel=0.01)


def test_each_comparison_is_seen_from_both_sides() -> None:
    probabilities, outcomes = symmetric_probabilities(np.array([math.log(3) * 2]), 2.0)
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
    found = report(np.zeros(2), [pair(0, 1, tie=True)], 1.0, seed=0)
    assert found == {"num_pairs": 1, "num_ties": 1}
