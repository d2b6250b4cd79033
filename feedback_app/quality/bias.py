"""Preferences for what should not matter: the left side, the longer text.

Sides are shuffled for each person and task, so without a bias the left answer is chosen half the time. Length
has no such guarantee (a longer answer may be better), which is why it is reported, not condemned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest

from feedback_app.quality.resampling import LEVEL, NUM_RESAMPLES, group_sums, interval_of, share
from rlhf.core.stats import Interval, wilson_interval


@dataclass(frozen=True)
class SideBias:
    """left: share of choices for the left answer, with Wilson's interval. p: two-sided exact binomial test."""

    left: Interval
    p: float


@dataclass(frozen=True)
class LengthBias:
    """longer: share of choices for the longer answer (equal lengths left out), resampled over items.

    slope: logistic slope of choosing an answer on the logarithm of its length ratio; 0 is no bias, 1 means
    that twice the length doubles the odds. Its interval is robust to several answers on one item (sandwich).
    """

    longer: Interval
    slope: Interval | None


def side_bias(left_N: np.ndarray) -> SideBias | None:
    """left_N: 1 where the left answer was chosen, 0 where the right one was. None without a choice."""
    if not len(left_N):
        return None
    chosen = int(left_N.sum())
    return SideBias(wilson_interval(chosen, len(left_N)), float(binomtest(chosen, len(left_N)).pvalue))


def length_bias(
    chosen_length_N: np.ndarray,
    other_length_N: np.ndarray,
    item_N: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> LengthBias | None:
    """Lengths in characters of the chosen and of the other answer of each choice; item_N: what was judged."""
    different = chosen_length_N != other_length_N
    if not different.any():
        return None
    longer_N = (chosen_length_N > other_length_N)[different].astype(np.float64)
    rows = group_sums(item_N[different], np.stack([longer_N, np.ones_like(longer_N)], axis=1))
    interval = interval_of(rows, share, n=len(longer_N), num_resamples=num_resamples, seed=seed)
    if interval is None:
        return None
    ratio_N = np.log((1.0 + chosen_length_N) / (1.0 + other_length_N))
    return LengthBias(interval, logistic_slope(ratio_N, item_N))


def logistic_slope(x_N: np.ndarray, item_N: np.ndarray, max_iterations: int = 50) -> Interval | None:
    """b of P(chosen) = 1 / (1 + exp(-b x)), x the difference chosen minus other; no intercept.

    Newton's method. None where x is 0 everywhere or always has one sign: then no finite b fits best.
    """
    if not ((x_N > 0).any() and (x_N < 0).any()):
        return None
    slope = 0.0
    for _ in range(max_iterations):
        lost_N = 1 / (1 + np.exp(np.clip(slope * x_N, -500, 500)))
        information = float((x_N**2 * lost_N * (1 - lost_N)).sum())
        step = float((x_N * lost_N).sum()) / max(information, 1e-12)
        slope += max(-1.0, min(1.0, step))
        if abs(step) < 1e-10:
            break
    lost_N = 1 / (1 + np.exp(np.clip(slope * x_N, -500, 500)))
    information = float((x_N**2 * lost_N * (1 - lost_N)).sum())
    per_item = group_sums(item_N, (x_N * lost_N)[:, None])[:, 0]
    half = (
        NormalDist().inv_cdf(0.5 + LEVEL / 2)
        * math.sqrt(float((per_item**2).sum()))
        / max(information, 1e-12)
    )
    return Interval(slope, slope - half, slope + half, len(x_N))
