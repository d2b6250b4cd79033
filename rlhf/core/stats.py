"""The statistics that reports and gates rest on; numpy only.

Intervals over prompts resample prompts, not rows: rows of one prompt are not independent, and resampling
them would make every interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

MAX_RESAMPLE_CELLS = 4_000_000  # 32 MB of counts at a time


class Interval(NamedTuple):
    """A mean with its confidence interval; n is the number of values it was computed from."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling whole groups where they are given.

    values: N numbers. groups: N labels (the prompt of each value). One group alone gives a zero-width
    interval. Raises ValueError for no values, non-finite values or lengths that differ.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data):
        raise ValueError(f"expected a non-empty list of numbers; found shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("values hold NaN or Infinity")
    sums_G: np.ndarray = data
    counts_G: np.ndarray = np.ones(len(data))
    if groups is not None:
        member = _members(groups, len(data), "values")
        sums_G, counts_G = np.bincount(member, weights=data), np.bincount(member) * 1.0
    num_groups = len(sums_G)
    means = [
        (times_RG @ sums_G) / (times_RG @ counts_G)
        for times_RG in _resamples(num_groups, num_resamples, seed)
    ]
    low, high = _percentiles(means, level)
    return Interval(float(data.mean()), low, high, len(data))


def bootstrap_sums(
    columns_NK: Sequence[Sequence[float]] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of what is computed from sums over items, such as perplexity or corpus BLEU.

    columns_NK: K numbers of each of N items. statistic: maps sums [R, K] to R values; it must not fail on sums of
    any choice of items. The mean of the result is the statistic of all items. One seed resamples the same groups
    whatever the columns are, so a paired difference is one statistic over both systems' columns. Raises ValueError
    for no items, non-finite values or lengths that differ.
    """
    data = np.asarray(columns_NK, dtype=np.float64)
    if data.ndim != 2 or not len(data):
        raise ValueError(f"expected a non-empty table of numbers; found shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("values hold NaN or Infinity")
    sums_GK: np.ndarray = data
    if groups is not None:
        member = _members(groups, len(data), "items")
        sums_GK = np.zeros((member.max() + 1, data.shape[1]))
        np.add.at(sums_GK, member, data)
    found = [statistic(times_RG @ sums_GK) for times_RG in _resamples(len(sums_GK), num_resamples, seed)]
    low, high = _percentiles(found, level)
    return Interval(float(statistic(data.sum(axis=0, keepdims=True))[0]), low, high, len(data))


def _members(groups: Sequence[Hashable] | np.ndarray, num: int, what: str) -> np.ndarray:
    """[N] the number of each one's group, in the order in which groups appear. Raises ValueError for another length."""
    if len(groups) != num:
        raise ValueError(f"{len(groups)} groups for {num} {what}")
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(group, len(index)) for group in groups])


def _resamples(num_groups: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[R, G] how often each group is drawn in a resample, so many resamples at a time as memory allows."""
    rng = np.random.default_rng(seed)
    left = num_resamples
    while left > 0:
        size = min(left, max(1, MAX_RESAMPLE_CELLS // num_groups))
        yield rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size)
        left -= size


def _percentiles(pieces: Sequence[np.ndarray], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(pieces), [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927). n = 0 knows nothing: mean NaN, from 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"successes ({successes}) must be between 0 and n ({n})")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # exact at the ends, where rounding would leave 3e-17
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high, n)


class CalibrationBin(NamedTuple):
    """Predictions that fell into one bin: their mean, how often the outcome came true, their number or weight."""

    confidence: float
    frequency: float
    size: float


def calibration_bins(
    probabilities: Sequence[float] | np.ndarray,
    outcomes: Sequence[float] | np.ndarray,
    num_bins: int = 10,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> list[CalibrationBin]:
    """Equal-width bins over [0, 1] that hold something, each closed on the right. Outcomes: 0 to 1, a tie is 0.5.
    weights: how much each counts, 0 or more; alike where None."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
    if not p.shape == y.shape == w.shape or p.ndim != 1 or not len(p):
        raise ValueError(f"expected lists of one length; found shapes {p.shape}, {y.shape} and {w.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    index = np.clip(np.ceil(p * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for b in range(num_bins):
        total = float(w[index == b].sum())
        if total > 0:
            confidence, frequency = (float(w[index == b] @ v[index == b]) / total for v in (p, y))
            bins.append(CalibrationBin(confidence, frequency, int(total) if weights is None else total))
    return bins


def expected_calibration_error(
    probabilities: Sequence[float] | np.ndarray,
    outcomes: Sequence[float] | np.ndarray,
    num_bins: int = 10,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> float:
    """Mean gap between confidence and frequency, weighted by bin size (Naeini et al. 2015)."""
    bins = calibration_bins(probabilities, outcomes, num_bins, weights=weights)
    total = sum(b.size for b in bins)
    return sum(b.size / total * abs(b.confidence - b.frequency) for b in bins)


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Distinct word n-grams over all n-grams of the corpus (Li et al. 2016); 0.0 where there are none.

    The ratio falls with the amount of text: compare equal numbers of completions only.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.lower().split()
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0
