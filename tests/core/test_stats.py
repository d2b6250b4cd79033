"""Statistics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.core.stats import (
    bootstrap_mean,
    bootstrap_sums,
    calibration_bins,
    distinct_n,
    expected_calibration_error,
    wilson_interval,
)


def test_wilson_interval_by_hand() -> None:
    # z = 1.959964, p = 8/10: centre = (0.8 + z^2/20) / (1 + z^2/10) = 0.992073 / 1.384146 = 0.716741
    # half = z / 1.384146 * sqrt(0.016 + z^2/400) = 1.416010 * 0.160013 = 0.226580
    found = wilson_interval(8, 10)
    assert found.mean == 0.8
    assert found.low == pytest.approx(0.490162, abs=1e-5)
    assert found.high == pytest.approx(0.943318, abs=1e-5)
    assert found.n == 10


def test_wilson_interval_at_the_ends() -> None:
    # p = 0: low 0, high = z^2/n / (1 + z^2/n) = 0.384146 / 1.384146
    found = wilson_interval(0, 10)
    assert found.low == 0.0
    assert found.high == pytest.approx(0.277533, abs=1e-5)
    nothing = wilson_interval(0, 0)
    assert math.isnan(nothing.mean)
    assert nothing[1:] == (0.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"successes \(3\) must be between 0 and n \(2\)"):
        wilson_interval(3, 2)


def test_bootstrap_of_constant_values_has_no_width() -> None:
    assert bootstrap_mean([2.0] * 7) == (2.0, 2.0, 2.0, 7)


def test_bootstrap_agrees_with_the_normal_interval_for_many_values() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    found = bootstrap_mean(values, num_resamples=4000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_of_a_ratio_of_sums() -> None:
    # Perplexity of 3 texts: (2 + 6 + 1) nats over (4 + 4 + 1) tokens is exp(1); each text weighs by its tokens.
    found = bootstrap_sums(
        [(2, 4), (6, 4), (1, 1)], lambda sums_RK: np.exp(sums_RK[:, 0] / sums_RK[:, 1]), num_resamples=500
    )
    assert found.mean == pytest.approx(math.e)
    # one text drawn three times gives the ends: 2/4 and 6/4 nats a token
    assert (found.low, found.high) == pytest.approx((math.exp(0.5), math.exp(1.5)))
    assert found.n == 3


def test_bootstrap_of_sums_draws_as_that_of_means_does() -> None:
    values, groups = [0.0, 1.0, 3.0, 5.0, 2.0], ["a", "a", "b", "c", "c"]
    sums = bootstrap_sums(
        [(v, 1.0) for v in values], lambda s: s[:, 0] / s[:, 1], groups=groups, num_resamples=300, seed=2
    )
    assert sums == pytest.approx(bootstrap_mean(values, groups=groups, num_resamples=300, seed=2))
    # the difference of a system to itself is no difference, however it is resampled
    twins = bootstrap_sums([(v, v) for v in values], lambda s: s[:, 0] - s[:, 1], groups=groups)
    assert twins == (0.0, 0.0, 0.0, 5)
    with pytest.raises(ValueError, match="4 groups for 5 items"):
        bootstrap_sums([(v,) for v in values], lambda s: s[:, 0], groups=["a"] * 4)


def test_bootstrap_resamples_whole_groups() -> None:
    # 20 prompts with 50 equal rows each hold as much evidence as 20 values, not as 1000
    per_prompt = [float(i % 2) for i in range(20)]
    rows = [value for value in per_prompt for _ in range(50)]
    groups = [f"p{i}" for i in range(20) for _ in range(50)]
    grouped, single = bootstrap_mean(rows, groups=groups, seed=3), bootstrap_mean(per_prompt, seed=3)
    assert (grouped.low, grouped.high) == (single.low, single.high)
    naive = bootstrap_mean(rows, seed=3)
    assert (grouped.high - grouped.low) > 5 * (naive.high - naive.low)


def test_bootstrap_weighs_groups_by_their_rows() -> None:
    # two groups, sizes 3 and 1: a resample is (A,A) -> 1, (A,B) -> 3/4, (B,B) -> 0
    found = bootstrap_mean([1, 1, 1, 0], groups=["a", "a", "a", "b"], num_resamples=400)
    assert (found.mean, found.low, found.high) == (0.75, 0.0, 1.0)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


@pytest.mark.parametrize("bad", [[], [[1.0], [2.0]], [float("nan")]])
def test_bootstrap_refuses_what_has_no_mean(bad: list[float]) -> None:
    with pytest.raises(ValueError):
        bootstrap_mean(bad)
    with pytest.raises(ValueError, match="2 groups for 3 values"):
        bootstrap_mean([1, 2, 3], groups=["a", "b"])


def test_a_calibration_bin_counts_what_its_predictions_weigh() -> None:
    """Of 0.2 and 0.4 with weights 3 and 1: confidence 0.25, frequency 1/4; the third counts nothing."""
    bins = calibration_bins([0.2, 0.4, 0.9], [0, 1, 1], num_bins=2, weights=[3, 1, 0])
    assert bins == [(pytest.approx(0.25), pytest.approx(0.25), 4)]
    assert expected_calibration_error(
        [0.2, 0.4, 0.9], [0, 1, 1], num_bins=2, weights=[3, 1, 0]
    ) == pytest.approx(0)


def test_expected_calibration_error_by_hand() -> None:
    # bins of width 0.5: {0.2, 0.4} -> confidence 0.3, frequency 0.5, gap 0.2, weight 2/5
    #                    {0.6, 0.8, 1.0} -> confidence 0.8, frequency 2/3, gap 0.1333, weight 3/5
    found = expected_calibration_error([0.2, 0.4, 0.6, 0.8, 1.0], [0, 1, 1, 0, 1], num_bins=2)
    assert found == pytest.approx(0.4 * 0.2 + 0.6 * (0.8 - 2 / 3))


def test_bins_are_closed_on_the_right_and_ties_count_half() -> None:
    bins = calibration_bins([0.0, 0.5, 0.5001], [0, 0.5, 1], num_bins=2)
    assert [(b.size, b.frequency) for b in bins] == [(2, 0.25), (1, 1.0)]
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        calibration_bins([1.2], [1])


def test_distinct_n_by_hand() -> None:
    # bigrams: (a b) (b a) (a b) and (a b): 4 in all, 2 distinct
    assert distinct_n(["a b A b", "a b"]) == 0.5
    assert distinct_n(["a b c"], n=1) == 1.0
    assert distinct_n(["word", ""]) == 0.0
