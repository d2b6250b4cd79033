"""Figures of the systems on the same held-out items, and what tuning gained over the base and over few-shot.

Systems: "base" is the untouched model with the bare prompt, "few_shot" the same with examples before it, "tuned" the
model under examination with the bare prompt. Every interval is a bootstrap over prompt groups; a gain is measured on
the same resampled items for both sides. Gains are positive where tuning is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.core.figures import flat
from rlhf.core.stats import Interval, bootstrap_sums
from sft.assess.overlap import TEXT_STATISTICS, Statistic, ratio, text_columns

BASE, FEW_SHOT, TUNED = "base", "few_shot", "tuned"
NLL = "nll"
STATISTICS: dict[str, Statistic] = {NLL: ratio, **TEXT_STATISTICS}
OPPONENTS = {BASE: "gain", FEW_SHOT: "gain_over_few_shot"}

# measure -> numbers [N, K] whose sums over items its statistic reads
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Spoken:
    """What one system made of the held-out items: the likelihood of each reference, and its own answer."""

    nll: Sequence[np.ndarray]
    texts: Sequence[str]


def columns(spoken: Spoken, references: Sequence[Sequence[str]]) -> Columns:
    """Of each measure, the numbers of every item. Items without a measured token weigh nothing in the likelihood."""
    found = {NLL: nll_columns(spoken.nll)}
    return found | text_columns(spoken.texts, references)


def nll_columns(nlls: Sequence[np.ndarray]) -> np.ndarray:
    """[N, 2] summed nats and tokens of each item."""
    return np.array([(values.sum(), len(values)) for values in nlls], dtype=np.float64)


def perplexity(interval: Interval) -> Interval:
    """Perplexity from nats per token; the bounds of a monotone function are its bounds."""
    mean, low, high = (float(np.exp(value)) for value in interval[:3])
    return Interval(mean, low, high, interval.n)


def difference(
    better: np.ndarray, worse: np.ndarray, statistic: Statistic, groups: Sequence[Hashable], seed: int
) -> Interval:
    """statistic(better) - statistic(worse), both on the same resampled items."""
    split = better.shape[1]

    def paired(sums_RK: np.ndarray) -> np.ndarray:
        found: np.ndarray = statistic(sums_RK[:, :split]) - statistic(sums_RK[:, split:])
        return found

    return bootstrap_sums(np.hstack([better, worse]), paired, groups=groups, seed=seed)


def compare(systems: Mapping[str, Columns], groups: Sequence[Hashable], seed: int) -> dict[str, float | None]:
    """Flat figures: of the tuned model under the measure's name, of the others with their name behind it, and gains.

    Perplexity stands beside `nll` (nats per token), whose gain is the nats saved.
    """
    figures: dict[str, float | None] = {}
    for measure, statistic in STATISTICS.items():
        for system, own in systems.items():
            end = "" if system == TUNED else f"_{system}"
            interval = bootstrap_sums(own[measure], statistic, groups=groups, seed=seed)
            figures |= flat(f"{measure}{end}", interval)
            if measure == NLL:
                figures |= flat(f"perplexity{end}", perplexity(interval))
        for opponent, name in OPPONENTS.items():
            if TUNED in systems and opponent in systems:
                better, worse = systems[TUNED][measure], systems[opponent][measure]
                if measure == NLL:  # nats saved
                    better, worse = worse, better
                gain = difference(better, worse, statistic, groups, seed)
                figures |= flat(f"{measure}_{name}", gain)
    return figures


def standing(figures: Mapping[str, Any], name: str) -> str | None:
    """'better', 'worse' or 'open' by the interval of a gain; None where it was not measured."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    if low is None or high is None:
        return None
    return "better" if low > 0 else "worse" if high < 0 else "open"
