"""How models compare: Bradley-Terry strengths with ties, from everybody's choices, with bootstrap intervals.

Davidson (On extending the Bradley-Terry model to accommodate ties in paired comparison experiments, JASA 65,
1970): P(i beats j) : P(j beats i) : P(tie) = p_i : p_j : v sqrt(p_i p_j). In logarithms it is a multinomial
logit, concave, fitted by Newton's method for all resamples at once. A normal prior of standard deviation 10 on
each log-strength keeps a model that never lost finite; over that many choices it moves nothing one can see.
"Both bad" counts as a tie. Intervals resample items, with all answers and all pairs of an item together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feedback_app.quality.resampling import LEVEL
from rlhf.core.stats import Interval

RIDGE = 0.01
NUM_RESAMPLES = 200
WIN, LOSS, TIE = 0, 1, 2  # of the first model of a comparison


@dataclass(frozen=True)
class WinRates:
    """rate_M: expected score (tie = half) against the average other model. strength_M: log-strengths, mean 0.

    wins_MM[i, j]: observed score of i against j, ties half; games_MM: comparisons behind it.
    """

    rate_M: list[Interval]
    strength_M: list[Interval]
    wins_MM: np.ndarray
    games_MM: np.ndarray
    tie_share: float


def win_rates(
    first_N: np.ndarray,
    second_N: np.ndarray,
    outcome_N: np.ndarray,
    item_N: np.ndarray,
    *,
    num_models: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> WinRates | None:
    """From N comparisons of two different models (codes from 0); None where there are none.

    outcome_N: WIN, LOSS or TIE as the first model fared. item_N: the item judged, resampled as a whole.
    """
    different = first_N != second_N
    first_N, second_N, outcome_N, item_N = (x[different] for x in (first_N, second_N, outcome_N, item_N))
    if not len(first_N):
        return None
    cell_N = (first_N * num_models + second_N) * 3 + outcome_N
    counts_RC = _resampled_counts(cell_N, item_N, num_models**2 * 3, num_resamples, seed)
    games_RMM3 = _both_ways(counts_RC.reshape(-1, num_models, num_models, 3))
    strengths_RM, tie_R = fit_davidson(games_RMM3)
    rates_RM = _average_score(strengths_RM, tie_R, games_RMM3[0].sum(axis=(1, 2)) > 0)
    games = games_RMM3[0]
    num_games_MM = games.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        wins_MM = (games[:, :, WIN] + games[:, :, TIE] / 2) / num_games_MM
    played_M = num_games_MM.sum(axis=1)
    return WinRates(
        rate_M=_intervals(rates_RM, played_M),
        strength_M=_intervals(strengths_RM, played_M),
        wins_MM=wins_MM,
        games_MM=num_games_MM,
        tie_share=float((outcome_N == TIE).mean()),
    )


def fit_davidson(games_RMM3: np.ndarray, max_iterations: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Log-strengths [R, M] (mean 0) and log of v [R] from counts seen from both sides: [.., i, j, WIN] and
    [.., j, i, LOSS] are the same games. Newton's method on R data sets at once."""
    num_sets, num_models = games_RMM3.shape[:2]
    upper_i, upper_j = np.triu_indices(num_models, 1)
    counts_RP3 = games_RMM3[:, upper_i, upper_j]
    played_RP = counts_RP3.sum(axis=2)
    # utilities of (win, loss, tie) of a pair as a linear map of (strengths, log v)
    design_P3K = np.zeros((len(upper_i), 3, num_models + 1))
    pairs = np.arange(len(upper_i))
    design_P3K[pairs, WIN, upper_i] = 1
    design_P3K[pairs, LOSS, upper_j] = 1
    design_P3K[pairs, TIE, upper_i] = design_P3K[pairs, TIE, upper_j] = 0.5
    design_P3K[pairs, TIE, num_models] = 1
    ridge_KK = RIDGE * np.eye(num_models + 1)
    theta_RK = np.zeros((num_sets, num_models + 1))
    for _ in range(max_iterations):
        p_RP3 = _softmax(np.einsum("pok,rk->rpo", design_P3K, theta_RK))
        gradient_RK = np.einsum("rpo,pok->rk", counts_RP3 - played_RP[..., None] * p_RP3, design_P3K)
        gradient_RK -= RIDGE * theta_RK
        weighted = played_RP[..., None] * p_RP3
        mean_RPK = np.einsum("rpo,pok->rpk", p_RP3, design_P3K)
        hessian_RKK = np.einsum("rpo,pok,pol->rkl", weighted, design_P3K, design_P3K, optimize=True)
        hessian_RKK -= np.einsum("rp,rpk,rpl->rkl", played_RP, mean_RPK, mean_RPK, optimize=True)
        step_RK = np.linalg.solve(hessian_RKK + ridge_KK, gradient_RK[..., None])[..., 0]
        # a full Newton step can overshoot where a model never lost
        step_RK *= np.minimum(1, 2 / np.maximum(np.abs(step_RK).max(axis=1, keepdims=True), 1e-12))
        theta_RK += step_RK
        if np.abs(step_RK).max() < 1e-8:
            break
    strengths_RM = theta_RK[:, :num_models]
    return strengths_RM - strengths_RM.mean(axis=1, keepdims=True), theta_RK[:, num_models]


def _resampled_counts(
    cell_N: np.ndarray, item_N: np.ndarray, num_cells: int, num_resamples: int, seed: int
) -> np.ndarray:
    """Counts [1 + R, C] of the cells: first as observed, then with items drawn with replacement."""
    _, index_N = np.unique(item_N, return_inverse=True)
    num_items = int(index_N.max()) + 1
    rng = np.random.default_rng(seed)
    counts = np.empty((1 + num_resamples, num_cells))
    counts[0] = np.bincount(cell_N, minlength=num_cells)
    for r in range(1, 1 + num_resamples):
        times_I = np.bincount(rng.integers(num_items, size=num_items), minlength=num_items)
        counts[r] = np.bincount(cell_N, weights=times_I[index_N], minlength=num_cells)
    return counts


def _both_ways(games_RMM3: np.ndarray) -> np.ndarray:
    result: np.ndarray = games_RMM3 + games_RMM3.transpose(0, 2, 1, 3)[..., [LOSS, WIN, TIE]]
    return result


def _average_score(strength_RM: np.ndarray, tie_R: np.ndarray, played_M: np.ndarray) -> np.ndarray:
    """Expected score of each model against a model drawn evenly from the others."""
    half_RMM = (strength_RM[:, :, None] + strength_RM[:, None, :]) / 2 + tie_R[:, None, None]
    utilities = np.stack(
        [
            np.broadcast_to(strength_RM[:, :, None], half_RMM.shape),
            np.broadcast_to(strength_RM[:, None, :], half_RMM.shape),
            half_RMM,
        ],
        axis=-1,
    )
    p_RMM3 = _softmax(utilities)
    score_RMM = p_RMM3[..., WIN] + p_RMM3[..., TIE] / 2
    others_MM = (~np.eye(len(played_M), dtype=bool)) & played_M[None, :]
    result: np.ndarray = (score_RMM * others_MM).sum(axis=2) / np.maximum(others_MM.sum(axis=1), 1)
    return result


def _softmax(utilities: np.ndarray) -> np.ndarray:
    odds = np.exp(utilities - utilities.max(axis=-1, keepdims=True))
    result: np.ndarray = odds / odds.sum(axis=-1, keepdims=True)
    return result


def _intervals(values_RM: np.ndarray, n_M: np.ndarray) -> list[Interval]:
    tail = (1 - LEVEL) / 2
    low_M, high_M = np.quantile(values_RM[1:], [tail, 1 - tail], axis=0)
    return [
        Interval(float(mean), float(low), float(high), int(n))
        for mean, low, high, n in zip(values_RM[0], low_M, high_M, n_M, strict=True)
    ]
