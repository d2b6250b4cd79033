"""How good a classifier is: accuracy, F1, confusion, calibration, each with an interval over families. Numpy and scipy.

Families of near-duplicate texts are resampled whole: copies of one text say nothing new.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from rlhf.core.stats import calibration_bins, expected_calibration_error

NUM_RESAMPLES = 2000
MAX_RESAMPLE_CELLS = 4_000_000  # 32 MB of tables, or of counts of families, at a time
TEMPERATURES = (0.05, 20.0)
SCORES = ("accuracy", "macro_f1", "weighted_f1")


def confusion_matrix(targets_N: np.ndarray, predicted_N: np.ndarray, num_labels: int) -> np.ndarray:
    """[K, K] counts: row the true label, column the predicted one."""
    cells = np.bincount(targets_N * num_labels + predicted_N, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def scores_of(tables_RKK: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, macro_f1, weighted_f1 [R] and precision, recall, f1 [R, K] of confusion tables [R, K, K].

    A label that a table's rows do not have has no recall and F1 (NaN) and does not count in the means; one that was
    never predicted has the precision 0, as in scikit-learn with zero_division=0.
    """
    right = np.diagonal(tables_RKK, axis1=1, axis2=2).astype(np.float64)
    true, said = tables_RKK.sum(2).astype(np.float64), tables_RKK.sum(1).astype(np.float64)
    total = true.sum(1)
    precision = np.divide(right, said, out=np.zeros_like(right), where=said > 0)
    recall = np.divide(right, true, out=np.full_like(right, np.nan), where=true > 0)
    f1 = np.divide(2 * right, true + said, out=np.full_like(right, np.nan), where=true > 0)
    known = (true > 0).sum(1)
    return {
        "accuracy": right.sum(1) / total,
        "macro_f1": np.nansum(f1, axis=1) / known,
        "weighted_f1": np.nansum(f1 * true, axis=1) / total,
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def resampled_scores(
    targets_N: np.ndarray,
    predicted_N: np.ndarray,
    num_labels: int,
    families: Sequence[Hashable],
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, np.ndarray]:
    """`scores_of` bootstrap samples that draw whole families. Equal seeds draw the same families."""
    index: dict[Hashable, int] = {}
    family_N = np.array([index.setdefault(family, len(index)) for family in families])
    cells_N = targets_N * num_labels + predicted_N
    shape = (len(index), num_labels**2)
    counts_GC = csr_matrix((np.ones(len(cells_N)), (family_N, cells_N)), shape=shape)
    rng = np.random.default_rng(seed)
    at_once = max(1, MAX_RESAMPLE_CELLS // max(num_labels**2, len(index)))
    found = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        times_RG = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=size)
        tables_RC = (counts_GC.T @ times_RG.T).T
        found.append(scores_of(tables_RC.reshape(size, num_labels, num_labels)))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def classification(
    targets_N: np.ndarray, predicted_N: np.ndarray, labels: Sequence[str], families: Sequence[str], seed: int
) -> dict[str, Any]:
    """Scores with 95 % intervals, the same per label, and the confusion table."""
    table = confusion_matrix(targets_N, predicted_N, len(labels))
    found = scores_of(table[None])
    drawn = resampled_scores(targets_N, predicted_N, len(labels), families, seed)
    result: dict[str, Any] = {"n": len(targets_N), "num_families": len(set(families))}
    for name in SCORES:
        result |= _with_interval(name, found[name][0], drawn[name])
    per_label = []
    for k, label in enumerate(labels):
        row: dict[str, Any] = {"label": label, "n": int(table[k].sum()), "predicted": int(table[:, k].sum())}
        for name in ("precision", "recall", "f1"):
            row |= _with_interval(name, found[name][0, k], drawn[name][:, k])
        per_label.append(row)
    return result | {"per_label": per_label, "confusion": table.tolist()}


def lead(
    targets_N: np.ndarray,
    predicted_N: np.ndarray,
    other_N: np.ndarray,
    num_labels: int,
    families: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """How far one set of predictions is ahead of another on the same texts, with intervals (paired bootstrap)."""
    result: dict[str, float] = {}
    pairs = []
    for predicted in (predicted_N, other_N):
        table = confusion_matrix(targets_N, predicted, num_labels)
        drawn = resampled_scores(targets_N, predicted, num_labels, families, seed)
        pairs.append((scores_of(table[None]), drawn))
    for name in SCORES:
        (mean, drawn_scores), (other, other_drawn) = ((a[name], b[name]) for a, b in pairs)
        result |= _with_interval(name, mean[0] - other[0], drawn_scores - other_drawn)
    return result


def _with_interval(name: str, value: float, drawn_R: np.ndarray) -> dict[str, float]:
    known = drawn_R[np.isfinite(drawn_R)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


# ---- probabilities --------------------------------------------------------------------------------------


def probabilities(logits_NK: np.ndarray, temperature: float) -> np.ndarray:
    """[N, K] softmax(logits / temperature)."""
    found: np.ndarray = np.exp(log_softmax(logits_NK.astype(np.float64) / temperature, axis=1))
    return found


def fit_temperature(logits_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """The temperature that minimises the log-loss (Guo et al., arXiv:1706.04599), within TEMPERATURES."""
    places = np.arange(len(targets_N))

    def log_loss(log_temperature: float) -> float:
        logs = log_softmax(logits_NK.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -float(logs[places, targets_N].mean())

    bounds = (np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))


def calibration(probabilities_NK: np.ndarray, targets_N: np.ndarray) -> dict[str, Any]:
    """Do the probabilities mean what they say?

    ece: of the most probable label (Naeini et al. 2015), 10 bins. brier: sum over labels of (p - outcome)^2, from 0
    to 2 (Brier 1950). log_loss: nats. overconfidence: mean probability of the predicted label minus accuracy.
    """
    places = np.arange(len(targets_N))
    confidence, right = probabilities_NK.max(1), probabilities_NK.argmax(1) == targets_N
    outcomes = np.zeros_like(probabilities_NK)
    outcomes[places, targets_N] = 1
    true = np.maximum(probabilities_NK[places, targets_N], 1e-300)
    return {
        "ece": expected_calibration_error(confidence, right),
        "brier": float(np.square(probabilities_NK - outcomes).sum(1).mean()),
        "log_loss": -float(np.log(true).mean()),
        "overconfidence": float((confidence - right).mean()),
        "reliability": [b._asdict() for b in calibration_bins(confidence, right)],
    }
