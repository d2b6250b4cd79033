"""Every measure of quality: by hand on small cases and against published examples."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from feedback_app.quality import bias, drift, win_rates
from feedback_app.quality.agreement import TURNED_VERDICTS, alpha, label_counts, weighted_kappa
from feedback_app.quality.consistency import gold_accuracy, same_answer, self_agreement
from feedback_app.quality.timing import timing

# Krippendorff 2011, section C: four observers, twelve units, five values, some missing.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def published_counts():
    ratings = [(u, v - 1) for row in PUBLISHED for u, v in enumerate(row) if v is not None]
    items, labels = (np.array(column) for column in zip(*ratings, strict=True))
    return label_counts(items, labels, 5)


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_one_of_krippendorffs_paper(level, value):
    found = alpha(published_counts(), level=level)
    assert found.mean == pytest.approx(value, abs=5e-4)
    assert found.low < found.mean < found.high
    assert found.n == 11  # the twelfth unit has one rating


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_the_one_of_the_krippendorff_package(level):
    counts = np.random.default_rng(3).integers(0, 3, size=(40, 5)).astype(float)
    expected = krippendorff.alpha(value_counts=counts.astype(int), level_of_measurement=level)
    assert alpha(counts, level=level, num_resamples=10).mean == pytest.approx(expected)


def test_items_of_one_group_are_resampled_together():
    counts = np.random.default_rng(0).integers(0, 2, size=(60, 3)).astype(float)
    alone = alpha(counts, level="interval")
    grouped = alpha(np.repeat(counts, 4, axis=0), level="interval", group_I=np.repeat(np.arange(60), 4))
    # four copies of each item say no more about the width, though alpha is corrected for fewer values
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_weighted_kappa_by_hand():
    """Items (0,0), (2,2), (0,2), (1,1), both ways round: 8 pairs, observed squares 4 + 4 = 8.

    Marginals 3, 2, 3 of 8; expected squares 4 * 6/8 + 2 * 4 * 9/8 = 12; kappa = 1 - 8/12.
    """
    counts = np.array([[2, 0, 0], [0, 0, 2], [1, 0, 1], [0, 2, 0]], dtype=float)
    assert weighted_kappa(counts).mean == pytest.approx(1 / 3)
    pairs = [(0, 0), (2, 2), (0, 2), (1, 1)]
    both = [*pairs, *[(b, a) for a, b in pairs]]
    expected = cohen_kappa_score(*zip(*both, strict=True), weights="quadratic")
    assert weighted_kappa(counts).mean == pytest.approx(expected)


def test_verdicts_may_be_turned_for_kappa_and_alpha():
    counts = np.array([[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 2, 0], [2, 0, 0, 0]], dtype=float)
    turned = counts.copy()
    turned[0] = turned[0, list(TURNED_VERDICTS)]
    for measure in (alpha, weighted_kappa):
        straight, mixed = (measure(c, turned=TURNED_VERDICTS).mean for c in (counts, turned))
        assert straight == pytest.approx(mixed)


def test_side_bias_by_hand():
    """8 of 10 left: p = 2 * (45 + 10 + 1) / 1024; Wilson's interval is 0.490 to 0.943."""
    found = bias.side_bias(np.array([1] * 8 + [0] * 2))
    assert found.p == pytest.approx(0.109375)
    assert found.left[:3] == pytest.approx((0.8, 0.490, 0.943), abs=5e-4)
    assert bias.side_bias(np.array([])) is None


def test_length_slope_by_hand():
    """Three of four choices for an answer that is e times longer: 1/(1+exp(-b)) = 3/4, so b = ln 3.

    Information 4 * 3/16; squared scores 3/16 + 9/16; half width 1.96 * sqrt(0.75) / 0.75.
    """
    found = bias.logistic_slope(np.array([1.0, 1, 1, -1]), np.arange(4))
    assert found.mean == pytest.approx(math.log(3))
    assert found.high - found.mean == pytest.approx(1.959964 * math.sqrt(0.75) / 0.75)
    assert bias.logistic_slope(np.array([1.0, 2.0]), np.arange(2)) is None


def test_length_bias_counts_choices_of_the_longer_answer():
    chosen, other = np.array([10, 5, 7, 9, 4]), np.array([5, 10, 7, 3, 2])
    found = bias.length_bias(chosen, other, np.arange(5))
    assert (found.longer.mean, found.longer.n) == (0.75, 4)  # the equally long one says nothing
    assert bias.length_bias(np.array([3]), np.array([3]), np.array([0])) is None


def test_win_rates_by_hand():
    """6 wins, 2 losses, 4 ties of two models: log-strengths ln 3 apart, v = 4 / sqrt(12), score 8 of 12."""
    outcome = np.array([win_rates.WIN] * 6 + [win_rates.LOSS] * 2 + [win_rates.TIE] * 4)
    first, second = np.zeros(12, int), np.ones(12, int)
    found = win_rates.win_rates(first, second, outcome, np.arange(12), num_models=2)
    assert found.strength_M[0].mean - found.strength_M[1].mean == pytest.approx(math.log(3), abs=0.01)
    assert found.rate_M[0].mean == pytest.approx(8 / 12, abs=0.002)
    assert found.rate_M[0].low < 8 / 12 < found.rate_M[0].high
    assert (found.wins_MM[0, 1], found.wins_MM[1, 0], found.games_MM[0, 1]) == (8 / 12, 4 / 12, 12)
    games = np.zeros((1, 2, 2, 3))
    games[0, 0, 1], games[0, 1, 0] = (6, 2, 4), (2, 6, 4)
    assert win_rates.fit_davidson(games)[1][0] == pytest.approx(math.log(4 / math.sqrt(12)), abs=0.01)


def test_win_rates_recover_known_strengths_and_stay_finite():
    rng = np.random.default_rng(0)
    strengths = np.array([1.0, 0.0, -1.0])
    first, second = rng.integers(0, 3, 6000), rng.integers(0, 3, 6000)
    p = 1 / (1 + np.exp(strengths[second] - strengths[first]))
    outcome = np.where(rng.random(6000) < p, win_rates.WIN, win_rates.LOSS)
    found = win_rates.win_rates(first, second, outcome, np.arange(6000), num_models=3)
    for interval, strength in zip(found.strength_M, strengths, strict=True):
        assert interval.low - 0.05 < strength < interval.high + 0.05
    unbeaten = win_rates.win_rates(
        np.zeros(30, int), np.ones(30, int), np.zeros(30, int), np.arange(30), num_models=2
    )
    assert 0.9 < unbeaten.rate_M[0].mean < 1
    assert win_rates.win_rates(*[np.array([], int)] * 4, num_models=0) is None


def test_weeks_begin_on_monday():
    monday = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
    weeks = drift.week_of(np.array([monday - 1, monday, monday + 6.9 * drift.DAY_S]))
    assert list(weeks - weeks[0]) == [0, 1, 1]
    assert drift.week_start(int(weeks[1])) == monday


def test_changes_by_hand():
    """Newcombe's example: 56/70 against 48/80 is 0.2 (0.0524 to 0.3339). A 2 x 2 table with expectation 15
    everywhere and 5 off: chi-squared 4 * 25/15, p = 0.0098."""
    (change, _) = drift.label_changes(np.array([48, 32]), np.array([56, 14]))
    assert change.difference[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert drift.homogeneity(np.array([[10, 20], [20, 10]])) == pytest.approx(0.00982, abs=1e-5)
    assert drift.homogeneity(np.array([[10, 20]])) is None
    rows = np.array([[1.0, 1], [0, 1], [1, 1], [1, 1]])
    fell = drift.agreement_change(rows, np.array([True, True, False, False]))
    assert fell.mean == pytest.approx(-0.5)
    assert fell.low <= -0.5 <= fell.high


def test_too_fast_by_the_projects_limit_and_by_a_persons_habit():
    """Median 10 s, logarithms spread by ln 1.1 (times 1.4826): 10 / 1.1^4.45 = 6.5 s is where unusual begins."""
    habit = [10 / 1.1, 10, 10 * 1.1] * 7
    found = timing(np.array([*habit, 6.0, 7.0, math.nan]), min_seconds=6.5)
    assert (found.median_s, found.too_fast, found.unusual, found.n) == (10, 1, 1, 23)
    assert timing(np.array([1.0] * 5)).unusual == 0
    assert timing(np.array([math.nan])) is None


def test_consistency_by_hand():
    """3 of 4: Wilson's interval is 0.301 to 0.954."""
    found = self_agreement([True, True, True, False])
    assert found[:3] == pytest.approx((0.75, 0.3006, 0.9544), abs=1e-4)
    assert gold_accuracy(3, 4) == found
    assert self_agreement([]) is None
    assert gold_accuracy(0, 0) is None


def test_the_same_answer_in_each_kind():
    assert same_answer("pairwise", {"preference": "tie"}, {"preference": "tie"})
    assert not same_answer("pairwise", {"preference": "first"}, {"preference": "second"})
    assert same_answer("thumbs", {"thumb": "up"}, {"thumb": "up"})
    assert same_answer("ranking", {"ranking": [["a", "b"], ["c"]]}, {"ranking": [["b", "a"], ["c"]]})
    assert not same_answer("ranking", {"ranking": [["a"], ["b"]]}, {"ranking": [["b"], ["a"]]})
    near, far = {"scores": {"help": {"c": 4, "d": 2}}}, {"scores": {"help": {"c": 2, "d": 2}}}
    assert same_answer("scores", near, {"scores": {"help": {"c": 5, "d": 2}}})
    assert not same_answer("scores", near, far)
    assert not same_answer("scores", near, {"scores": {"tone": {"c": 4, "d": 2}}})
