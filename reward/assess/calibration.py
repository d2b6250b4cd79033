"""Do the probabilities mean what they say? `reward.calibrate` says what they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from reward.assess.slices import MIN_PAIRS
from reward.calibrate import brier_scores, calibration_error, log_losses, symmetric_probabilities
from reward.data import Pair
from reward.evaluate import correctness, differences, votes_of
from reward.score import RewardScale
from rlhf.core.figures import flat
from rlhf.core.stats import bootstrap_mean, calibration_bins, expected_calibration_error

OTHER = 1_000_000_000  # sorts behind every number of ratings


def calibration(
    scores: np.ndarray, pairs: Sequence[Pair], decided: Sequence[Pair], scale: RewardScale, seed: int
) -> dict[str, Any]:
    """ECE, Brier score and log-loss on decided comparisons, the bins of the reliability diagram, and the same
    against the raters' mean vote for each number of raters.

    overconfidence: mean probability of the side that the model prefers, minus how often that side was chosen.
    """
    logits = scale.logits(differences(scores, decided))
    groups = [pair.group_id for pair in decided]
    probabilities, outcomes = symmetric_probabilities(logits)
    confidence = expit(np.abs(logits))
    surplus = confidence - correctness(scores, decided)
    return {
        "temperature": scale.temperature,
        "ece": calibration_error(logits),
        **flat("brier", bootstrap_mean(brier_scores(logits), groups=groups, seed=seed)),
        **flat("log_loss", bootstrap_mean(log_losses(logits), groups=groups, seed=seed)),
        **flat("overconfidence", bootstrap_mean(surplus, groups=groups, seed=seed)),
        "mean_confidence": float(confidence.mean()),
        "reliability": [b._asdict() for b in calibration_bins(probabilities, outcomes)],
        "by_raters": by_raters(scores, pairs, scale),
    }


def by_raters(scores: np.ndarray, pairs: Sequence[Pair], scale: RewardScale) -> list[dict[str, Any]]:
    """For each number of ratings of the same completions: ECE and Brier score against the mean vote (a tie is 0.5).

    brier_reference: what saying one half every time would get on the same votes. Numbers of ratings that fewer than
    MIN_PAIRS pairs of completions have are taken together, as 'other'.
    """
    votes: dict[int, list[float]] = defaultdict(list)
    chances: dict[int, list[float]] = defaultdict(list)
    for (first, second), cast in votes_of(pairs).items():
        wins = [0.5 if p.preference.tie else float(p.chosen == first) for p in cast]
        votes[len(cast)].append(float(np.mean(wins)))
        chances[len(cast)].append(float(expit(scale.logits(scores[first] - scores[second]))))
    for count in [count for count in votes if len(votes[count]) < MIN_PAIRS]:
        votes[OTHER] += votes.pop(count)
        chances[OTHER] += chances.pop(count)
    table = []
    for count in sorted(votes):
        vote, chance = np.array(votes[count]), np.array(chances[count])
        both = np.concatenate([chance, 1 - chance]), np.concatenate([vote, 1 - vote])
        table.append(
            {
                "ratings": "other" if count == OTHER else count,
                "n": len(vote),
                "ece": expected_calibration_error(*both),
                "brier": float(np.square(chance - vote).mean()),
                "brier_reference": float(np.square(0.5 - vote).mean()),
            }
        )
    return table
