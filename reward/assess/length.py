"""Does the reward model like length, and more than the raters do?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from reward.data import Pair
from reward.evaluate import differences
from rlhf.core.figures import flat
from rlhf.core.stats import MAX_RESAMPLE_CELLS, Interval, bootstrap_mean


def length_bias(
    scores: np.ndarray, decided: Sequence[Pair], tokens: Sequence[int], correct: np.ndarray, seed: int
) -> dict[str, Any]:
    """Figures of length bias on decided comparisons. tokens: of each row's completion. correct: [P].

    length_correlation: of score and length, within prompts. longer_by_model, longer_by_raters: share of comparisons
    of unequal length in which the longer one wins; longer_excess: the first minus the second.
    accuracy_shorter_better, accuracy_longer_better: accuracy where the raters chose the shorter, the longer one.
    """
    tokens_N = np.asarray(tokens, dtype=np.float64)
    rows = {row: pair.group_id for pair in decided for row in (pair.chosen, pair.rejected)}
    places = list(rows)
    correlation = within_correlation(scores[places], tokens_N[places], list(rows.values()), seed=seed)
    groups = np.array([pair.group_id for pair in decided])
    delta = differences(scores, decided)
    longer = np.sign(differences(tokens_N, decided))
    unequal = longer != 0
    by_model = 0.5 + 0.5 * np.sign(delta) * longer
    by_raters = 0.5 + 0.5 * longer

    def mean(values: np.ndarray, where: np.ndarray) -> Interval | None:
        return (
            bootstrap_mean(values[where], groups=groups[where].tolist(), seed=seed) if where.any() else None
        )

    return {
        **flat("length_correlation", correlation),
        **flat("longer_by_model", mean(by_model, unequal)),
        **flat("longer_by_raters", mean(by_raters, unequal)),
        **flat("longer_excess", mean(by_model - by_raters, unequal)),
        **flat("accuracy_shorter_better", mean(correct, longer < 0)),
        **flat("accuracy_longer_better", mean(correct, longer > 0)),
        "num_shorter_better": int((longer < 0).sum()),
        "num_longer_better": int((longer > 0).sum()),
        "num_equally_long": int((longer == 0).sum()),
    }


def within_correlation(
    xs: np.ndarray, ys: np.ndarray, groups: Sequence[Hashable], *, num_resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Pearson correlation of xs and ys [N] after each group's mean is taken away, bootstrapped over groups.

    So that it does not count that long answers go with prompts whose answers score high. None where either does
    not vary within any group.
    """
    index: dict[Hashable, int] = {}
    member = np.array([index.setdefault(group, len(index)) for group in groups])
    sizes = np.bincount(member)

    def centred(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(member, weights=values) / sizes)[member]

    x, y = centred(np.asarray(xs, dtype=np.float64)), centred(np.asarray(ys, dtype=np.float64))
    sums_G3 = np.stack([np.bincount(member, weights=w) for w in (x * y, x * x, y * y)], axis=1)
    total = sums_G3.sum(axis=0)
    # What centring leaves of equal numbers is rounding, not variation.
    if min(total[1] / max(1.0, np.square(xs).sum()), total[2] / max(1.0, np.square(ys).sum())) < 1e-18:
        return None
    num_groups = len(sizes)
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    left = num_resamples
    while left > 0:
        size = min(left, max(1, MAX_RESAMPLE_CELLS // num_groups))
        times_RG = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size)
        xy, xx, yy = (times_RG @ sums_G3).T
        found.append(np.where(xx * yy > 0, xy / np.sqrt(np.maximum(xx * yy, 1e-300)), 0.0))
        left -= size
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Interval(float(total[0] / np.sqrt(total[1] * total[2])), float(low), float(high), len(x))
