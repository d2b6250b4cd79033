"""How good a reward model is: held-out accuracy with its interval, beside what the raters achieve themselves.

`report` is what training writes into its manifest; `rlhf reward-eval` (reward.assess) measures much more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from reward.calibrate import calibration_error, symmetric_probabilities
from reward.data import Pair, without_ties
from reward.score import RewardScale
from rlhf.core.figures import flat
from rlhf.core.stats import Interval, bootstrap_mean, calibration_bins


def differences(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """Score of chosen minus score of rejected [P]; `scores` is indexed by row number."""
    chosen = np.array([pair.chosen for pair in pairs])
    rejected = np.array([pair.rejected for pair in pairs])
    return scores[chosen] - scores[rejected]


def correctness(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """[P] 1 where the chosen completion scores higher, 0 where the rejected one does, 0.5 for equal scores."""
    delta = differences(scores, pairs)
    correct: np.ndarray = (delta > 0) + 0.5 * (delta == 0)
    return correct


def accuracy(scores: np.ndarray, pairs: Sequence[Pair], seed: int) -> Interval | None:
    """Share of decided comparisons that the scores order as the rater did; equal scores count half.

    Interval by bootstrap over prompt groups. None when there is no decided comparison.
    """
    decided = without_ties(pairs)
    if not decided:
        return None
    correct = correctness(scores, decided)
    return bootstrap_mean(correct, groups=[pair.group_id for pair in decided], seed=seed)


def votes_of(pairs: Sequence[Pair]) -> dict[tuple[int, int], list[Pair]]:
    """The comparisons of each two completions, by their row numbers (smaller, larger), in the order given."""
    votes: dict[tuple[int, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        votes[min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)].append(pair)
    return dict(votes)


def majority_accuracy(scores: np.ndarray, pairs: Sequence[Pair], seed: int) -> Interval | None:
    """Share of the twos of completions that the scores order as most of their raters did.

    Only where two or more raters decided and one side got more of them; a rater who answered more than once counts
    once, with the last answer. None when there is no such two.
    """
    values, groups = [], []
    for (first, second), cast in votes_of(without_ties(pairs)).items():
        by_rater = {pair.preference.annotator_id: 1 if pair.chosen == first else -1 for pair in cast}
        lead = sum(by_rater.values())
        if len(by_rater) < 2 or lead == 0:
            continue
        delta = (scores[first] - scores[second]) * lead
        values.append(0.5 if delta == 0 else float(delta > 0))
        groups.append(cast[0].group_id)
    return bootstrap_mean(values, groups=groups, seed=seed) if values else None


def attainable_accuracy(agreement: float) -> float:
    """What a model that always sides with the majority could reach against single ratings, given how often two
    raters agree, if all raters err alike and independently: they are right with q, agreement = q^2 + (1 - q)^2.

    Agreement below one half, which such raters cannot have, gives one half.
    """
    return 0.5 + 0.5 * math.sqrt(max(0.0, 2 * agreement - 1))


def rater_agreement(pairs: Sequence[Pair], seed: int) -> Interval | None:
    """How often two raters of the same two completions chose the same one, ties left out: the ceiling that
    accuracy against single ratings is read against. None when no pair has two raters."""
    values, owners = [], []
    for cast in votes_of(without_ties(pairs)).values():
        for one, other in combinations(cast, 2):
            if one.preference.annotator_id != other.preference.annotator_id:
                values.append(float(one.chosen == other.chosen))
                owners.append(cast[0].group_id)
    return bootstrap_mean(values, groups=owners, seed=seed) if values else None


def weights_of(pairs: Sequence[Pair], weigh: Callable[[str], float]) -> np.ndarray | None:
    """What the answer of each pair counts [N], None where nobody of them counts."""
    weights = np.array([weigh(pair.preference.annotator_id) for pair in pairs])
    return weights if weights.sum() > 0 else None


def report(
    scores: np.ndarray,
    pairs: Sequence[Pair],
    scale: RewardScale,
    seed: int,
    weigh: Callable[[str], float] | None = None,
) -> dict[str, object]:
    """Figures of one split as they go into the manifest: accuracy, agreement, calibration error and curve.

    weigh: what an answer of each annotator counts in the calibration, which is of those whom training believed.
    """
    result: dict[str, object] = {"num_pairs": len(pairs), "num_ties": len(pairs) - len(without_ties(pairs))}
    for name, interval in (
        ("accuracy", accuracy(scores, pairs, seed)),
        ("agreement", rater_agreement(pairs, seed)),
    ):
        if interval is not None:
            result |= flat(name, interval)
    decided = without_ties(pairs)
    if decided:
        logits = scale.logits(differences(scores, decided))
        probabilities, outcomes = symmetric_probabilities(logits)
        weights = None if weigh is None else weights_of(decided, weigh)
        both = None if weights is None else np.concatenate([weights, weights])
        result["calibration_error"] = calibration_error(logits, weights)
        result["reliability"] = [b._asdict() for b in calibration_bins(probabilities, outcomes, weights=both)]
    return result
