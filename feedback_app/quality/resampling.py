"""Bootstrap over groups for statistics that are functions of sums: fast, because equal groups are drawn together.

Items, not answers, are resampled everywhere: what several people say about one item is not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rlhf.core.stats import Interval

NUM_RESAMPLES = 1000
LEVEL = 0.95


def group_sums(group_N: np.ndarray, values_NC: np.ndarray) -> np.ndarray:
    """Sums [G, C] of the rows of each group; groups are labels, in any order and number."""
    _, index_N = np.unique(group_N, return_inverse=True)
    num_groups = int(index_N.max()) + 1 if len(index_N) else 0
    columns = [
        np.bincount(index_N, weights=values_NC[:, c], minlength=num_groups) for c in range(values_NC.shape[1])
    ]
    return np.stack(columns, axis=1)


def resampled_sums(rows_GC: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Sums [R, C] over groups drawn with replacement. Equal rows are one outcome of one multinomial draw."""
    num_groups = len(rows_GC)
    patterns_PC, counts_P = np.unique(rows_GC, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    times_RP = rng.multinomial(num_groups, counts_P / num_groups, size=num_resamples)
    return times_RP.astype(np.float64) @ patterns_PC


def interval_of(
    rows_GC: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    n: int | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval (Efron 1979) of statistic(sums [R, C]) -> [R] over the groups.

    n: what the interval says it was computed from; default the number of groups. None where there is no
    group or the statistic is undefined on the whole. Resamples in which it is undefined are left out.
    """
    if not len(rows_GC):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(rows_GC.sum(axis=0, keepdims=True))[0])
        drawn_R = statistic(resampled_sums(rows_GC, num_resamples=num_resamples, seed=seed))
    if not math.isfinite(value):
        return None
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn_R, [tail, 1 - tail]) if len(drawn_R) else (value, value)
    return Interval(value, float(low), float(high), len(rows_GC) if n is None else n)


def share(sums_RC: np.ndarray) -> np.ndarray:
    """First column over the second: a proportion whose numerator and denominator were both resampled."""
    result: np.ndarray = sums_RC[:, 0] / sums_RC[:, 1]
    return result
