"""How well raters agree: the ceiling of what a reward model can learn from them.

- alpha: Krippendorff's alpha (Computing Krippendorff's alpha-reliability, 2011): 1 is perfect, 0 is what
  chance gives. Nominal for verdicts and thumbs, interval for signed strengths, ordinal for scores.
- kappa: Cohen's kappa with quadratic weights (1968), for ordered answers, over all pairs of raters of an item,
  each pair both ways round, so that it does not matter who is called the first rater.
- raw: of all pairs of raters on one item who both had a preference, the share that preferred the same one.
  It compares directly with a reward model's accuracy.

Which completion of a pair is "first" is arbitrary, and where it follows the answers chance agreement is
overrated (on PandaLM's ratings 0.68 instead of 0.86), so verdicts and strengths are counted both ways round.
Intervals resample items, since the pairs of one item are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import text

from feedback_app.quality.resampling import NUM_RESAMPLES, group_sums, interval_of, share
from feedback_app.store.engine import Store
from rlhf.core.records import Verdict
from rlhf.core.stats import Interval

Level = Literal["nominal", "ordinal", "interval"]
VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "both_bad")
TURNED_VERDICTS = (1, 0, 2, 3)  # the same verdicts when the completions swap places
_VERDICTS_QUERY = text(
    "SELECT task_id, annotator_id, preference FROM current_annotations "
    "WHERE project_id = :project AND kind = 'pairwise' AND purpose = 'rate' ORDER BY task_id, annotator_id"
)


@dataclass(frozen=True)
class Agreement:
    """Agreement of raters. None where it is undefined: fewer than two raters on every item, or no spread.

    n_items: items with at least two raters. n_pairs: pairs of raters behind `raw` (ties left out).
    """

    alpha: float | None
    raw: float | None
    interval: Interval | None
    n_items: int
    n_pairs: int
    n_annotators: int
    alpha_interval: Interval | None = None


def pairwise_agreement(store: Store, project: str, *, num_resamples: int = 2000, seed: int = 0) -> Agreement:
    """Agreement over a project's current pairwise answers; surplus ones are opinions too and count.

    Gold items, repeats and a lead's decisions are not counted: they are not independent opinions.
    """
    with store.read() as connection:
        found = connection.execute(_VERDICTS_QUERY, {"project": project}).tuples().all()
    return agreement(found, num_resamples=num_resamples, seed=seed)


def agreement(
    verdicts: Iterable[tuple[str, str, str]], *, num_resamples: int = 2000, seed: int = 0
) -> Agreement:
    """Agreement of (item, annotator, verdict) triples, one per item and annotator."""
    rows = list(verdicts)
    code = {verdict: index for index, verdict in enumerate(VERDICTS)}
    items = np.array([item for item, _, _ in rows])
    labels = np.array([code[verdict] for _, _, verdict in rows], dtype=np.int64)  # type: ignore[index]
    counts_IV = label_counts(items, labels, len(VERDICTS))
    alpha_interval = alpha(counts_IV, turned=TURNED_VERDICTS, num_resamples=num_resamples, seed=seed)
    interval = raw_agreement(counts_IV, num_resamples=num_resamples, seed=seed)
    return Agreement(
        alpha=alpha_interval.mean if alpha_interval else None,
        raw=interval.mean if interval else None,
        interval=interval,
        n_items=int((counts_IV.sum(axis=1) >= 2).sum()),
        n_pairs=interval.n if interval else 0,
        n_annotators=len({annotator for _, annotator, _ in rows}),
        alpha_interval=alpha_interval,
    )


def label_counts(item_N: np.ndarray, label_N: np.ndarray, num_labels: int) -> np.ndarray:
    """How often each label [V] was given to each item: [I, V], items in sorted order."""
    if not len(item_N):
        return np.zeros((0, num_labels))
    unique, index_N = np.unique(item_N, return_inverse=True)
    flat = np.bincount(index_N * num_labels + label_N, minlength=len(unique) * num_labels)
    return flat.reshape(len(unique), num_labels).astype(np.float64)


def agreeing_pairs(counts_IV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per item: pairs of raters that gave the same label, and all pairs of raters."""
    total_I = counts_IV.sum(axis=1)
    return (counts_IV * (counts_IV - 1) / 2).sum(axis=1), total_I * (total_I - 1) / 2


def raw_agreement(
    counts_IV: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval | None:
    """Share of agreeing pairs among raters who had a preference (columns 0 and 1). n: the number of pairs."""
    rows_I2 = np.stack(agreeing_pairs(counts_IV[:, :2]), axis=1)
    rows_I2 = rows_I2[rows_I2[:, 1] > 0]
    return interval_of(rows_I2, share, n=int(rows_I2[:, 1].sum()), num_resamples=num_resamples, seed=seed)


def alpha(
    counts_IV: np.ndarray,
    *,
    level: Level = "nominal",
    values: Sequence[float] | None = None,
    turned: Sequence[int] | None = None,
    group_I: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Krippendorff's alpha with its interval; None where no item has two ratings or all ratings are equal.

    counts_IV: label counts of each item. values [V]: the numbers behind the labels (interval; default 0, 1,
    2 ...). turned [V]: the label that each one becomes when an item's completions swap places. group_I: items
    of one group are resampled together. n of the result: items with at least two ratings.
    """
    totals_I = counts_IV.sum(axis=1)
    shared = totals_I >= 2
    counts_SV, totals_S = counts_IV[shared], totals_I[shared]
    num_labels = counts_IV.shape[1]
    coincidences = _ordered_pairs(counts_SV) / np.maximum(totals_S - 1, 1)[:, None, None]
    if turned is not None:
        coincidences = coincidences + coincidences[:, turned][:, :, turned]
    rows = coincidences.reshape(len(counts_SV), num_labels**2)
    if group_I is not None and len(rows):
        rows = group_sums(group_I[shared], rows)
    numbers_V = np.arange(num_labels, dtype=np.float64) if values is None else np.asarray(values, np.float64)

    def statistic(sums_RC: np.ndarray) -> np.ndarray:
        o_RVV = sums_RC.reshape(-1, num_labels, num_labels)
        n_RV = o_RVV.sum(axis=2)
        delta_RVV = _squared_distance(level, n_RV, numbers_V)
        observed = (o_RVV * delta_RVV).sum(axis=(1, 2))
        expected = (n_RV[:, :, None] * n_RV[:, None, :] * delta_RVV).sum(axis=(1, 2))
        result: np.ndarray = 1 - (n_RV.sum(axis=1) - 1) * observed / expected
        return result

    return interval_of(rows, statistic, n=int(shared.sum()), num_resamples=num_resamples, seed=seed)


def weighted_kappa(
    counts_IV: np.ndarray,
    *,
    turned: Sequence[int] | None = None,
    group_I: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Quadratic weighted kappa of ordered labels 0, 1, 2 ... over all pairs of raters of an item.

    Arguments as in `alpha`. None where no item has two ratings or all ratings are equal.
    """
    shared = counts_IV.sum(axis=1) >= 2
    num_labels = counts_IV.shape[1]
    pairs = _ordered_pairs(counts_IV[shared])
    if turned is not None:
        pairs = pairs + pairs[:, turned][:, :, turned]
    rows = pairs.reshape(len(pairs), num_labels**2)
    if group_I is not None and len(rows):
        rows = group_sums(group_I[shared], rows)
    labels = np.arange(num_labels, dtype=np.float64)
    weights_VV = (labels[:, None] - labels[None, :]) ** 2

    def statistic(sums_RC: np.ndarray) -> np.ndarray:
        o_RVV = sums_RC.reshape(-1, num_labels, num_labels)
        marginal_RV = o_RVV.sum(axis=2)
        expected = marginal_RV[:, :, None] * marginal_RV[:, None, :] / o_RVV.sum(axis=(1, 2))[:, None, None]
        result: np.ndarray = 1 - (o_RVV * weights_VV).sum(axis=(1, 2)) / (expected * weights_VV).sum(
            axis=(1, 2)
        )
        return result

    return interval_of(rows, statistic, n=int(shared.sum()), num_resamples=num_resamples, seed=seed)


def _ordered_pairs(counts_IV: np.ndarray) -> np.ndarray:
    """Ordered pairs of ratings of one item by two people: [I, V, V]."""
    pairs = counts_IV[:, :, None] * counts_IV[:, None, :]
    index = np.arange(counts_IV.shape[1])
    pairs[:, index, index] -= counts_IV
    return pairs


def _squared_distance(level: Level, n_RV: np.ndarray, values_V: np.ndarray) -> np.ndarray:
    """Krippendorff's difference function [R, V, V]; the ordinal one depends on how often labels occur."""
    if level == "nominal":
        return np.broadcast_to(1.0 - np.eye(len(values_V)), (len(n_RV), len(values_V), len(values_V)))
    # ordinal: the ratings between two labels, half of each end included, is a difference of mid-ranks
    place_RV = np.cumsum(n_RV, axis=1) - n_RV / 2 if level == "ordinal" else np.tile(values_V, (len(n_RV), 1))
    result: np.ndarray = (place_RV[:, :, None] - place_RV[:, None, :]) ** 2
    return result
