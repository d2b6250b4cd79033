"""How good a reward model is: held-out accuracy with its interval, beside what the raters achieve themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from reward.calibrate import calibration_error, symmetric_probabilities
from reward.data import Pair, without_ties
from rlhf.core.stats import Interval, bootstrap_mean, calibration_bins


def differences(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """Score of chosen minus score of rejected [P]; `scores` is indexed by row number."""
    chosen = np.array([pair.chosen for pair in pairs])
    rejected = np.array([pair.rejected for pair in pairs])
    return scores[chosen] - scores[rejected]


def accuracy(scores: np.ndarray, pairs: Sequence[Pair], seed: int) -> Interval | None:
    """Share of decided comparisons that the scores order as the rater did; equal scores count half.

    Interval by bootstrap over prompt groups. None when there is no decided comparison.
    """
    decided = without_ties(pairs)
    if not decided:
        return None
    delta = differences(scores, decided)
    correct = (delta > 0) + 0.5 * (delta == 0)
    return bootstrap_mean(correct, groups=[pair.group_id for pair in decided], seed=seed)


def rater_agreement(pairs: Sequence[Pair], seed: int) -> Interval | None:
    """How often two raters of the same two completions chose the same one, ties left out: the ceiling that
    accuracy against single ratings is read against. None when no pair has two raters."""
    votes: dict[frozenset[int], list[tuple[str, int]]] = defaultdict(list)
    groups: dict[frozenset[int], str] = {}
    for pair in without_ties(pairs):
        key = frozenset((pair.chosen, pair.rejected))
        votes[key].append((pair.preference.annotator_id, pair.chosen))
        groups[key] = pair.group_id
    values, owners = [], []
    for key, cast in votes.items():
        for (rater_a, choice_a), (rater_b, choice_b) in combinations(cast, 2):
            if rater_a != rater_b:
                values.append(float(choice_a == choice_b))
                owners.append(groups[key])
    return bootstrap_mean(values, groups=owners, seed=seed) if values else None


def report(scores: np.ndarray, pairs: Sequence[Pair], temperature: float, seed: int) -> dict[str, object]:
    """Figures of one split as they go into the manifest: accuracy, agreement, calibration error and curve."""
    result: dict[str, object] = {"num_pairs": len(pairs), "num_ties": len(pairs) - len(without_ties(pairs))}
    for name, interval in (
        ("accuracy", accuracy(scores, pairs, seed)),
        ("agreement", rater_agreement(pairs, seed)),
    ):
        if interval is not None:
            result |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    decided = without_ties(pairs)
    if decided:
        delta = differences(scores, decided)
        probabilities, outcomes = symmetric_probabilities(delta, temperature)
        result["calibration_error"] = calibration_error(delta, temperature)
        result["reliability"] = [b._asdict() for b in calibration_bins(probabilities, outcomes)]
    return result
