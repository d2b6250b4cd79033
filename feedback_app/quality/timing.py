"""Answers that came too fast to have been read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_ANSWERS = 20
NUM_SPREADS = 3.0
MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


@dataclass(frozen=True)
class Timing:
    """One person's times. too_fast: below the project's limit. unusual: far below their own habit."""

    median_s: float
    too_fast: int
    unusual: int
    n: int


def timing(seconds_N: np.ndarray, min_seconds: float = 0.0) -> Timing | None:
    """Times in seconds of one person's answers; those without a time (NaN) are left out. None without any."""
    known = seconds_N[np.isfinite(seconds_N)]
    if not len(known):
        return None
    return Timing(
        median_s=float(np.median(known)),
        too_fast=int((known < min_seconds).sum()),
        unusual=int(unusually_fast(known).sum()),
        n=len(known),
    )


def unusually_fast(seconds_N: np.ndarray) -> np.ndarray:
    """Which answers lie more than three robust standard deviations below the person's own median time.

    On the logarithm of the time, since times are skewed; nothing is unusual among fewer than 20 answers, nor
    where more than half of them took equally long.
    """
    logs = np.log(np.maximum(seconds_N, 0.01))
    middle = np.median(logs)
    spread = MAD_TO_SIGMA * np.median(np.abs(logs - middle))
    if len(logs) < MIN_ANSWERS or spread == 0:
        return np.zeros(len(logs), dtype=bool)
    result: np.ndarray = logs < middle - NUM_SPREADS * spread
    return result
