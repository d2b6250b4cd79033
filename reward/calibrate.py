"""Making score differences mean what they say: P(a beats b) = sigmoid((s_a - s_b) / temperature)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rlhf.core.stats import expected_calibration_error


def fit_temperature(differences: np.ndarray, wins: np.ndarray) -> float:
    """The temperature that minimises the log-loss on validation comparisons (Guo et al., arXiv:1706.04599).

    differences: s_chosen - s_rejected [N]. wins: 1, or 0.5 for a tie [N]. Bounded to [0.05, 20].
    """

    def log_loss(log_temperature: float) -> float:
        logits = differences / np.exp(log_temperature)
        # -[w log sigmoid(x) + (1 - w) log sigmoid(-x)] in its stable form
        return float(np.mean(np.logaddexp(0, -logits) * wins + np.logaddexp(0, logits) * (1 - wins)))

    return float(np.exp(minimize_scalar(log_loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def symmetric_probabilities(differences: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, outcomes), each comparison once from each side: chosen always wins, so one side alone
    would only ever show outcomes of 1."""
    probabilities = expit(differences / temperature)
    return (
        np.concatenate([probabilities, 1 - probabilities]),
        np.concatenate([np.ones_like(probabilities), np.zeros_like(probabilities)]),
    )


def calibration_error(differences: np.ndarray, temperature: float) -> float:
    """Expected calibration error (Naeini et al. 2015) over decided comparisons, 10 bins."""
    probabilities, outcomes = symmetric_probabilities(differences, temperature)
    return expected_calibration_error(probabilities, outcomes)


def brier_scores(differences: np.ndarray, temperature: float) -> np.ndarray:
    """(1 - P(chosen beats rejected))^2 of each decided comparison [N] (Brier 1950); 0.25 is knowing nothing."""
    misses: np.ndarray = np.square(expit(-differences / temperature))
    return misses


def log_losses(differences: np.ndarray, temperature: float) -> np.ndarray:
    """-log P(chosen beats rejected) of each decided comparison [N], in nats; ln 2 is knowing nothing."""
    losses: np.ndarray = np.logaddexp(0, -differences / temperature)
    return losses
