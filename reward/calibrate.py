"""Making score differences mean what they say.

P(a beats b) is that of the pair loss at a difference of (s_a - s_b) / temperature, given that one of them wins:
sigmoid of it for Bradley-Terry and Davidson, where a tie takes alike from both, and a little steeper for Rao-Kupper,
where it takes the larger share from the worse one. Figures are about these log-odds, called logits.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from reward.losses import PairLoss, comparison_loss
from rlhf.core.stats import expected_calibration_error

TEMPERATURES = (0.05, 20.0)
TIE_LOGITS = (-10.0, 10.0)


def decided_logits(kind: PairLoss, differences: np.ndarray, tie_logit: float | None = None) -> np.ndarray:
    """log(P(first wins) / P(second wins)) [N] at these differences in units of the temperature [N].

    Of Rao-Kupper: log sigmoid(d - eta) - log sigmoid(-d - eta), where softplus(tie_logit) is eta.
    """
    if kind != "rao-kupper" or tie_logit is None:
        return differences
    eta = np.logaddexp(0, tie_logit)
    logits: np.ndarray = np.logaddexp(0, differences + eta) - np.logaddexp(0, eta - differences)
    return logits


def fit_temperature(
    differences: np.ndarray,
    tie: np.ndarray,
    kind: PairLoss = "bradley-terry",
    tie_logit: float | None = None,
    weights: np.ndarray | None = None,
) -> tuple[float, float | None]:
    """(temperature, tie logit) that minimise the log-loss on validation comparisons (Guo et al., arXiv:1706.04599).

    differences: s_chosen - s_rejected [N]. tie: whether neither was chosen [N]. Under Bradley-Terry a tie is half a win
    for each; the other losses give ties a probability of their own, and their tie logit is fitted along with the
    temperature where there are ties to fit it to. weights: how much each answer counts [N], alike where None: with
    raters of different care the probabilities are to be those of people who read. Temperatures are bounded to
    [0.05, 20].
    """
    tie = np.asarray(tie, bool)
    if weights is None or not weights.sum() > 0:
        weights = np.ones(len(tie))
    bounds = (np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]))
    if kind == "bradley-terry" or tie_logit is None or not tie.any():
        # Without ties all that can be asked is who wins where one does.
        def log_loss(log_temperature: float) -> float:
            logits = decided_logits(kind, differences / np.exp(log_temperature), tie_logit)
            half = np.where(tie, (np.logaddexp(0, logits) + np.logaddexp(0, -logits)) / 2, 0.0)
            return float(np.average(np.where(tie, half, np.logaddexp(0, -logits)), weights=weights))

        return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x)), tie_logit

    first = torch.tensor(differences, dtype=torch.float64)[:, None]
    outcome = torch.tensor(np.stack([~tie, tie, np.zeros_like(tie)], axis=1), dtype=torch.float64)
    nothing = torch.zeros(len(first), dtype=torch.float64)

    def tied_log_loss(at: np.ndarray) -> float:
        scaled = first / float(np.exp(at[0]))
        level = torch.tensor(float(at[1]), dtype=torch.float64)
        loss = comparison_loss(kind, scaled, torch.zeros_like(scaled), outcome, nothing, level)
        return float(np.average(loss.numpy().ravel(), weights=weights))

    found = minimize(
        tied_log_loss, np.array([0.0, tie_logit]), bounds=[bounds, TIE_LOGITS], method="L-BFGS-B"
    )
    return float(np.exp(found.x[0])), float(found.x[1])


def symmetric_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, outcomes) of decided comparisons, each once from each side: chosen always wins, so one side
    alone would only ever show outcomes of 1."""
    probabilities = expit(logits)
    return (
        np.concatenate([probabilities, 1 - probabilities]),
        np.concatenate([np.ones_like(probabilities), np.zeros_like(probabilities)]),
    )


def calibration_error(logits: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error (Naeini et al. 2015) over decided comparisons, 10 bins. weights: of each [N]."""
    probabilities, outcomes = symmetric_probabilities(logits)
    both = None if weights is None else np.concatenate([weights, weights])
    return expected_calibration_error(probabilities, outcomes, weights=both)


def brier_scores(logits: np.ndarray) -> np.ndarray:
    """(1 - P(chosen beats rejected))^2 of each decided comparison [N] (Brier 1950); 0.25 is knowing nothing."""
    misses: np.ndarray = np.square(expit(-logits))
    return misses


def log_losses(logits: np.ndarray) -> np.ndarray:
    """-log P(chosen beats rejected) of each decided comparison [N], in nats; ln 2 is knowing nothing."""
    losses: np.ndarray = np.logaddexp(0, -logits)
    return losses
