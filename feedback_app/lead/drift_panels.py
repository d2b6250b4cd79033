"""Panels about change over the weeks."""

from __future__ import annotations

from typing import Any

import numpy as np

from feedback_app.lead.agreement_panels import longer_share
from feedback_app.lead.panels import Column, Panel, ranged
from feedback_app.quality.agreement import VERDICTS, agreeing_pairs, label_counts, raw_agreement
from feedback_app.quality.answers import Answers, Comparisons
from feedback_app.quality.drift import agreement_change, homogeneity, label_changes, week_of, week_start
from rlhf.core.stats import wilson_interval

MAX_WEEKS = 26
CHANGE_CHART = {
    "kind": "dots",
    "label": ["what"],
    "facets": [{"key": "change", "label": "change of the share", "zero": 0, "alarm": "both"}],
}
GROUPS = ("slightly", "clearly", "much", "tie", "both bad")


def drift_panels(answers: Answers) -> list[Panel]:
    """Agreement by week, labels by week, and what changed in the newest week."""
    comparisons = answers.comparisons
    week = week_of(comparisons.created)
    weeks = np.unique(week)[-MAX_WEEKS:]
    label, num_labels, names = _labels(comparisons)
    scores = [x for x in answers.labels if x.kind == "scores"]
    if not len(comparisons) and scores:
        week = week_of(np.concatenate([x.created for x in scores]))
        label = np.concatenate([x.label for x in scores])
        weeks, num_labels, names = np.unique(week)[-MAX_WEEKS:], 5, [f"score {s}" for s in range(1, 6)]
    table_WV = np.array([np.bincount(label[week == w], minlength=num_labels) for w in weeks]).reshape(
        -1, num_labels
    )
    return [
        _agreement_by_week(comparisons, week_of(comparisons.created), weeks),
        _labels_by_week(table_WV, weeks, names),
        _changes(comparisons, table_WV, weeks, names),
    ]


def _labels(comparisons: Comparisons) -> tuple[np.ndarray, int, list[str]]:
    strength = np.nan_to_num(comparisons.strength, nan=1.0).astype(np.int64)
    label = np.where(comparisons.preferring, strength - 1, comparisons.verdict + 1)
    return label, len(GROUPS), list(GROUPS)


def _agreement_by_week(comparisons: Comparisons, week: np.ndarray, weeks: np.ndarray) -> Panel:
    """An item belongs to the week of its last answer: only then is it known how far people agreed on it."""
    rows = []
    item_week, counts = _item_weeks(comparisons, week)
    for w in weeks:
        left = comparisons.left[(week == w) & (comparisons.left >= 0)]
        row: dict[str, Any] = {"week": week_start(int(w)), "answers": int((week == w).sum())}
        row |= ranged("agreement", raw_agreement(counts[item_week == w], num_resamples=400))
        row |= ranged("left", wilson_interval(int(left.sum()), len(left)) if len(left) else None)
        row |= ranged("longer", longer_share(comparisons.where(week == w)))
        rows.append(row)
    return Panel(
        "agreement_by_week",
        "Agreement and biases by week",
        (
            Column("week", "week of", "day"),
            Column("answers", "comparisons", "count"),
            Column("agreement", "same answer preferred", "share", True),
            Column("left", "chose left", "share", True),
            Column("longer", "chose longer", "share", True),
        ),
        [row for row in rows if row["answers"]],
        {"kind": "lines", "x": "week", "y": ["agreement", "left", "longer"], "zero": 0.5, "from": 0, "to": 1},
        "Bands are 95 % intervals. Weeks begin on Monday, UTC.",
        "No comparisons yet.",
    )


def _labels_by_week(table_WV: np.ndarray, weeks: np.ndarray, names: list[str]) -> Panel:
    rows = [
        {
            "week": week_start(int(w)),
            "label": names[v],
            "share": round(float(table_WV[i, v] / table_WV[i].sum()), 4),
            "count": int(table_WV[i, v]),
        }
        for i, w in enumerate(weeks)
        for v in range(len(names))
        if table_WV[i, v]
    ]
    p = homogeneity(table_WV)
    note = "Shares of each week's answers."
    if p is not None:
        clear = "differ more than chance explains" if p < 0.01 else "do not differ more than chance explains"
        shown = "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
        note += f" The weeks {clear} (chi-squared, {shown})."
    return Panel(
        "labels_by_week",
        "What people said, by week",
        (
            Column("week", "week of", "day"),
            Column("label", "label"),
            Column("share", "share", "share"),
            Column("count", "answers", "count"),
        ),
        rows,
        {"kind": "stack", "x": "week", "part": "label", "y": "share", "parts": names},
        note,
        "No answers yet.",
    )


def _changes(comparisons: Comparisons, table_WV: np.ndarray, weeks: np.ndarray, names: list[str]) -> Panel:
    rows: list[dict[str, Any]] = []
    if len(weeks) >= 2:
        for change in label_changes(table_WV[:-1].sum(axis=0), table_WV[-1]):
            if not change.earlier.mean and not change.recent.mean:
                continue
            row: dict[str, Any] = {"what": names[change.label], "earlier": round(change.earlier.mean, 4)}
            row |= {"recent": round(change.recent.mean, 4), **ranged("change", change.difference)}
            rows.append(row)
        item_week, counts = _item_weeks(comparisons, week_of(comparisons.created))
        pairs = np.stack(agreeing_pairs(counts[:, :2]), axis=1)
        recent = item_week == weeks[-1]
        of_agreement = agreement_change(pairs, recent)
        if of_agreement is not None:
            sums = pairs[~recent].sum(axis=0), pairs[recent].sum(axis=0)
            row = {"what": "agreement", "earlier": round(float(sums[0][0] / sums[0][1]), 4)}
            row |= {"recent": round(float(sums[1][0] / sums[1][1]), 4), **ranged("change", of_agreement)}
            rows.insert(0, row)
    for row in rows:
        row["clear"] = bool(row["change_low"] > 0 or row["change_high"] < 0)
    return Panel(
        "changes",
        "The newest week against all before",
        (
            Column("what", "share of"),
            Column("earlier", "before", "share"),
            Column("recent", "newest week", "share"),
            Column("change", "change", "number", True),
            Column("clear", "clear", "flag", False, "the interval leaves out 0"),
        ),
        rows,
        CHANGE_CHART,
        "Newcombe's interval for shares, resampled items for agreement; 95 % each, not corrected for looking at "
        "several rows.",
        "Drift needs answers from two weeks.",
    )


def _item_weeks(comparisons: Comparisons, week: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of completions that was judged: the week of its last answer, and its verdict counts."""
    counts = label_counts(comparisons.pair, comparisons.verdict, len(VERDICTS))
    unique, index = np.unique(comparisons.pair, return_inverse=True)
    last = np.full(len(unique), np.iinfo(np.int64).min)
    np.maximum.at(last, index, week)
    return last, counts
