"""How reliable each rater is, and what is true, estimated together from what they said about the same items.

Dawid and Skene (Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied
Statistics 28, 1979): every rater has a confusion matrix, every item a hidden true label; EM finds both. Two
departures: which completion is "first" is arbitrary, so rows and columns that become each other when the
completions swap places share their parameters; and half a pseudo-count per cell keeps raters with few answers
away from 0 and 1 (0 gives the paper's estimator).

Crowd-BT (Chen, Bennett, Collins-Thompson and Horvitz, Pairwise ranking aggregation in a crowdsourced setting,
WSDM 2013): P(rater a says i beats j) = eta_a s(i over j) + (1 - eta_a) s(j over i) with Bradley-Terry
strengths; eta near 1 is a good rater, near 0.5 a coin, near 0 one who answers the reverse. Fitted by EM on
whether the rater followed the strengths, with the paper's regularisation (a virtual item that wins and loses
once against every item, here with weight `regularization`) and a Beta prior on eta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DawidSkene:
    """truth_IK: probability of each true label. confusion_AKK[a, k, l]: rater a says l where the truth is k.

    reliability_A: probability that the rater names the true label. answers_A: how many answers it rests on.
    """

    truth_IK: np.ndarray
    prior_K: np.ndarray
    confusion_AKK: np.ndarray
    reliability_A: np.ndarray
    answers_A: np.ndarray


@dataclass(frozen=True)
class CrowdBT:
    """strength_I of the items (mean 0), eta_A of the raters, answers_A behind each."""

    strength_I: np.ndarray
    eta_A: np.ndarray
    answers_A: np.ndarray


def dawid_skene(
    item_N: np.ndarray,
    rater_N: np.ndarray,
    label_N: np.ndarray,
    *,
    num_items: int,
    num_raters: int,
    num_labels: int,
    turned: Sequence[int] | None = None,
    smoothing: float = 0.5,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> DawidSkene:
    """Fit from N answers, codes from 0. Starts from the share of votes; stops when no probability moves more.

    turned [K]: the label that each one becomes when an item's completions swap places (None: no symmetry).
    """
    votes_IK = np.bincount(item_N * num_labels + label_N, minlength=num_items * num_labels)
    truth_IK = (
        votes_IK.reshape(num_items, num_labels)
        / np.maximum(np.bincount(item_N, minlength=num_items), 1)[:, None]
    )
    cell_N = rater_N * num_labels + label_N
    prior_K, confusion_AKK = _parameters(truth_IK, item_N, cell_N, num_raters, num_labels, turned, smoothing)
    for _ in range(max_iterations):
        updated_IK = _truths(prior_K, confusion_AKK, item_N, rater_N, label_N, num_items)
        moved = float(np.abs(updated_IK - truth_IK).max(initial=0.0))
        truth_IK = updated_IK
        prior_K, confusion_AKK = _parameters(
            truth_IK, item_N, cell_N, num_raters, num_labels, turned, smoothing
        )
        if moved < tolerance:
            break
    reliability_A = np.einsum("k,akk->a", prior_K, confusion_AKK)
    return DawidSkene(
        truth_IK, prior_K, confusion_AKK, reliability_A, np.bincount(rater_N, minlength=num_raters)
    )


def _parameters(
    truth_IK: np.ndarray,
    item_N: np.ndarray,
    cell_N: np.ndarray,
    num_raters: int,
    num_labels: int,
    turned: Sequence[int] | None,
    smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The M-step: prior [K] and confusion [A, K, K] from the expected truths."""
    prior_K = truth_IK.mean(axis=0)
    counts_AKK: np.ndarray = np.stack(
        [
            np.bincount(cell_N, weights=truth_IK[item_N, k], minlength=num_raters * num_labels).reshape(
                num_raters, num_labels
            )
            for k in range(num_labels)
        ],
        axis=1,
    )
    if turned is not None:
        prior_K = (prior_K + prior_K[list(turned)]) / 2
        counts_AKK = (counts_AKK + counts_AKK[:, turned][:, :, turned]) / 2
    counts_AKK = counts_AKK + smoothing
    totals_AK1 = counts_AKK.sum(axis=2, keepdims=True)
    uniform = np.full_like(counts_AKK, 1 / num_labels)
    return prior_K, np.divide(counts_AKK, totals_AK1, out=uniform, where=totals_AK1 > 0)


def _truths(
    prior_K: np.ndarray,
    confusion_AKK: np.ndarray,
    item_N: np.ndarray,
    rater_N: np.ndarray,
    label_N: np.ndarray,
    num_items: int,
) -> np.ndarray:
    """The E-step: P(true label | answers) for each item, in logarithms so that many answers do not underflow."""
    tiny = 1e-300
    evidence_NK = np.log(np.maximum(confusion_AKK[rater_N, :, label_N], tiny))
    log_IK = np.tile(np.log(np.maximum(prior_K, tiny)), (num_items, 1))
    for k in range(len(prior_K)):
        log_IK[:, k] += np.bincount(item_N, weights=evidence_NK[:, k], minlength=num_items)
    odds_IK = np.exp(log_IK - log_IK.max(axis=1, keepdims=True))
    result: np.ndarray = odds_IK / odds_IK.sum(axis=1, keepdims=True)
    return result


def crowd_bt(
    winner_N: np.ndarray,
    loser_N: np.ndarray,
    rater_N: np.ndarray,
    *,
    num_items: int,
    num_raters: int,
    regularization: float = 0.5,
    prior: tuple[float, float] = (2.0, 1.0),
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> CrowdBT:
    """Fit from N statements "rater says winner beats loser", codes from 0.

    prior: pseudo-counts (followed, reversed) of each rater, which also say which way round the truth is.
    """
    strength_I = np.zeros(num_items)
    eta_A = np.full(num_raters, prior[0] / sum(prior))
    answers_A = np.bincount(rater_N, minlength=num_raters)
    for _ in range(max_iterations):
        expected_N = _logistic(strength_I[winner_N] - strength_I[loser_N])
        follows_N = eta_A[rater_N] * expected_N
        followed_N = follows_N / (follows_N + (1 - eta_A[rater_N]) * (1 - expected_N))
        sums_A = np.bincount(rater_N, weights=followed_N, minlength=num_raters)
        new_eta_A = (sums_A + prior[0]) / (answers_A + sum(prior))
        new_strength_I = _weighted_strengths(
            strength_I, winner_N, loser_N, followed_N, num_items, regularization
        )
        moved = max(
            float(np.abs(new_eta_A - eta_A).max(initial=0.0)),
            float(np.abs(new_strength_I - strength_I).max(initial=0.0)),
        )
        eta_A, strength_I = new_eta_A, new_strength_I
        if moved < tolerance:
            break
    return CrowdBT(strength_I - strength_I.mean() if num_items else strength_I, eta_A, answers_A)


def _weighted_strengths(
    strength_I: np.ndarray,
    winner_N: np.ndarray,
    loser_N: np.ndarray,
    followed_N: np.ndarray,
    num_items: int,
    regularization: float,
) -> np.ndarray:
    """A few diagonal Newton steps on the Bradley-Terry likelihood in which each statement counts by halves.

    A statement that was followed with probability q is q of a win and 1 - q of a loss; its gradient is
    q - s(winner over loser). Steps are bounded by twice the curvature, which keeps the ascent monotone.
    """
    strength_I = strength_I.copy()
    for _ in range(3):
        expected_N = _logistic(strength_I[winner_N] - strength_I[loser_N])
        pull_N, curve_N = followed_N - expected_N, expected_N * (1 - expected_N)
        gradient_I: np.ndarray = np.bincount(winner_N, weights=pull_N, minlength=num_items)
        gradient_I = gradient_I - np.bincount(loser_N, weights=pull_N, minlength=num_items)
        curvature_I: np.ndarray = np.bincount(winner_N, weights=curve_N, minlength=num_items)
        curvature_I = curvature_I + np.bincount(loser_N, weights=curve_N, minlength=num_items)
        virtual_I = _logistic(strength_I)
        gradient_I = gradient_I + regularization * (1 - 2 * virtual_I)
        curvature_I = curvature_I + regularization * virtual_I * (1 - virtual_I)
        strength_I += np.clip(gradient_I / np.maximum(2 * curvature_I, 1e-3), -1, 1)
    return strength_I


def _logistic(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-np.clip(x, -500, 500)))
    return result
