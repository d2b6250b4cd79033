"""Has rating changed over the weeks? Shares of labels and agreement by week, and tests of a change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2_contingency

from feedback_app.quality.resampling import NUM_RESAMPLES, interval_of
from rlhf.core.stats import Interval, wilson_interval

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
FIRST_MONDAY_S = 4 * DAY_S  # 5 January 1970


@dataclass(frozen=True)
class Change:
    """difference: recent share minus earlier share, with its interval; n counts both."""

    label: int
    earlier: Interval
    recent: Interval
    difference: Interval


def week_of(created_N: np.ndarray) -> np.ndarray:
    """Number of the week (Monday to Sunday, UTC) of times in seconds since the epoch."""
    result: np.ndarray = np.floor((created_N - FIRST_MONDAY_S) / WEEK_S).astype(np.int64)
    return result


def week_start(week: int) -> float:
    """The Monday on which a week begins, in seconds since the epoch (UTC)."""
    return week * WEEK_S + FIRST_MONDAY_S


def homogeneity(counts_WV: np.ndarray) -> float | None:
    """p of Pearson's chi-squared test that labels [V] are equally distributed in all weeks [W]; None for one week."""
    counts_WV = counts_WV[counts_WV.sum(axis=1) > 0][:, counts_WV.sum(axis=0) > 0]
    if min(counts_WV.shape) < 2:
        return None
    return float(chi2_contingency(counts_WV, correction=False).pvalue)


def label_changes(earlier_V: np.ndarray, recent_V: np.ndarray) -> list[Change]:
    """The change of each label's share, from counts, with Newcombe's interval (1998, method 10)."""
    changes = []
    n_earlier, n_recent = int(earlier_V.sum()), int(recent_V.sum())
    if not n_earlier or not n_recent:
        return []
    for label in range(len(earlier_V)):
        before = wilson_interval(int(earlier_V[label]), n_earlier)
        after = wilson_interval(int(recent_V[label]), n_recent)
        changes.append(Change(label, before, after, newcombe(before, after)))
    return changes


def newcombe(before: Interval, after: Interval) -> Interval:
    """The difference after - before of two proportions, from their Wilson intervals."""
    difference = after.mean - before.mean
    low = difference - math.hypot(after.mean - after.low, before.high - before.mean)
    high = difference + math.hypot(after.high - after.mean, before.mean - before.low)
    return Interval(difference, low, high, before.n + after.n)


def agreement_change(
    rows_I2: np.ndarray, is_recent_I: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval | None:
    """Raw agreement of recent items minus that of earlier ones, resampled over items.

    rows_I2: agreeing pairs and pairs of raters of each item. None where one side has no pair.
    """
    rows_I4 = np.where(
        is_recent_I[:, None], np.pad(rows_I2, ((0, 0), (0, 2))), np.pad(rows_I2, ((0, 0), (2, 0)))
    )

    def statistic(sums_RC: np.ndarray) -> np.ndarray:
        result: np.ndarray = sums_RC[:, 0] / sums_RC[:, 1] - sums_RC[:, 2] / sums_RC[:, 3]
        return result

    return interval_of(rows_I4, statistic, num_resamples=num_resamples, seed=seed)
