"""Panels about what the answers are and how far people agree in them."""

from __future__ import annotations

import numpy as np

from feedback_app.lead.panels import Column, Panel, ranged
from feedback_app.quality.agreement import (
    TURNED_VERDICTS,
    VERDICTS,
    alpha,
    label_counts,
    raw_agreement,
    weighted_kappa,
)
from feedback_app.quality.answers import SECOND, TIE, Answers, Comparisons, Labels
from feedback_app.quality.bias import length_bias, side_bias
from feedback_app.quality.resampling import group_sums, interval_of, share
from rlhf.core.stats import Interval

STRENGTHS = range(-3, 4)
STRENGTH_LABELS = ("slightly better", "clearly better", "much better", "tie", "both bad")
SAME_SIDE = "chance is 50 %; ties are left out"


def agreement_panel(answers: Answers) -> Panel:
    """Every measure that fits the kinds of answers there are, each with its interval."""
    rows = [*_comparison_rows(answers.comparisons)]
    for labels in answers.labels:
        rows += _label_rows(labels)
    shared = [row for row in rows if row["value"] is not None]
    return Panel(
        "agreement",
        "Agreement",
        (
            Column("measure", "measure"),
            Column("about", "of"),
            Column("value", "value", "number", ranged=True),
            Column("items", "items", "count"),
        ),
        shared,
        {
            "kind": "dots",
            "label": ["about", "measure"],
            "facets": [{"key": "value", "zero": 0, "from": None, "to": 1}],
        },
        "1 is perfect. For Krippendorff's alpha and Cohen's weighted kappa 0 is what chance gives; the share that "
        "prefers the same answer is 0.5 by chance. Bars are 95 % intervals over items. Gold items and repeats are "
        "not counted.",
        "No item has two answers yet. Raise the overlap when tasks are made.",
    )


def _comparison_rows(comparisons: Comparisons) -> list[dict[str, object]]:
    if not len(comparisons):
        return []
    counts = label_counts(comparisons.pair, comparisons.verdict, len(VERDICTS))
    task_of_pair = _first_of(comparisons.pair, comparisons.task)
    rows = [
        _row("same answer preferred", "comparisons", raw_agreement(counts)),
        _row("alpha, nominal", "comparisons", alpha(counts, turned=TURNED_VERDICTS, group_I=task_of_pair)),
    ]
    signed, known = signed_strength(comparisons)
    if known.any() and len(np.unique(np.abs(signed[known]))) > 1:
        about, values = "strength of preference", list(STRENGTHS)
        counts = label_counts(comparisons.pair[known], signed[known] - STRENGTHS[0], len(STRENGTHS))
        turned = tuple(reversed(range(len(STRENGTHS))))
        rows += [
            _row("kappa, quadratic", about, weighted_kappa(counts, turned=turned)),
            _row("alpha, interval", about, alpha(counts, level="interval", values=values, turned=turned)),
        ]
    return rows


def _label_rows(labels: Labels) -> list[dict[str, object]]:
    counts = label_counts(labels.unit, labels.label, labels.num_labels)
    if labels.kind == "thumbs":
        return [
            _row("same thumb", "thumbs", raw_agreement(counts)),
            _row("alpha, nominal", "thumbs", alpha(counts)),
        ]
    groups = _first_of(labels.unit, labels.task)
    return [
        _row("kappa, quadratic", labels.name, weighted_kappa(counts, group_I=groups)),
        _row("alpha, ordinal", labels.name, alpha(counts, level="ordinal", group_I=groups)),
    ]


def signed_strength(comparisons: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """(-3 .. 3 in canonical order, which of them are known): 0 for a tie, unknown without a strength."""
    even = comparisons.verdict >= TIE
    known = even | np.isfinite(comparisons.strength)
    strength = np.where(even, 0, np.nan_to_num(comparisons.strength)).astype(np.int64)
    return np.where(comparisons.verdict == SECOND, -strength, strength), known


def labels_panel(answers: Answers) -> Panel:
    """How often each label was given: a stack for comparisons, for thumbs, and for each attribute."""
    rows: list[dict[str, object]] = []

    def add(group: str, names: list[str], counts: np.ndarray) -> None:
        total = int(counts.sum())
        rows.extend(
            {"group": group, "label": name, "share": round(float(count) / total, 4), "count": int(count)}
            for name, count in zip(names, counts, strict=True)
            if total
        )

    comparisons = answers.comparisons
    if len(comparisons):
        preferring, known = comparisons.preferring, np.isfinite(comparisons.strength)
        strengths = np.bincount(comparisons.strength[preferring & known].astype(np.int64), minlength=4)[1:4]
        unknown = int((preferring & ~known).sum())
        counts = [*strengths, unknown, *np.bincount(comparisons.verdict, minlength=4)[TIE:]]
        names = [*STRENGTH_LABELS[:3], "better", *STRENGTH_LABELS[3:]]
        add("comparisons", names, np.array(counts))
    for labels in answers.labels:
        names = ["down", "up"] if labels.kind == "thumbs" else [str(score) for score in range(1, 6)]
        add(labels.name, names, np.bincount(labels.label, minlength=labels.num_labels))
    return Panel(
        "labels",
        "What people said",
        (
            Column("group", "of"),
            Column("label", "label"),
            Column("share", "share", "share"),
            Column("count", "answers", "count"),
        ),
        [row for row in rows if row["count"]],
        {"kind": "stack", "x": "group", "part": "label", "y": "share"},
        empty="No answers yet.",
    )


def biases_panel(answers: Answers) -> Panel:
    """Shares of choices for the left and for the longer answer, over all people."""
    comparisons = answers.comparisons
    rows: list[dict[str, object]] = []
    note = "Sides are shuffled: without a bias half of the choices are for the left. A longer answer may be better."
    side = side_bias(comparisons.left[comparisons.left >= 0])
    if side is not None:
        rows.append({"what": "left answer chosen", **ranged("share", side.left), "n": side.left.n})
        note += f" Left against right: p = {side.p:.2g} (exact binomial test)."
    chosen = np.flatnonzero(comparisons.preferring)
    verdict = comparisons.verdict[chosen]
    length = length_bias(
        comparisons.lengths[chosen, verdict],
        comparisons.lengths[chosen, 1 - verdict],
        comparisons.task[chosen],
    )
    if length is not None:
        rows.append({"what": "longer answer chosen", **ranged("share", length.longer), "n": length.longer.n})
        if length.slope is not None:
            low, mid, high = (2**value for value in (length.slope.low, length.slope.mean, length.slope.high))
            note += f" Twice the length multiplies the odds of being chosen by {mid:.2f} ({low:.2f} to {high:.2f})."
    return Panel(
        "biases",
        "Biases",
        (
            Column("what", "share of choices"),
            Column("share", "share", "share", ranged=True),
            Column("n", "choices", "count"),
        ),
        rows,
        {
            "kind": "dots",
            "label": ["what"],
            "facets": [{"key": "share", "zero": 0.5, "from": 0.25, "to": 0.75}],
        },
        note,
        "No comparisons yet.",
    )


def _row(measure: str, about: str, interval: Interval | None) -> dict[str, object]:
    return {
        "measure": measure,
        "about": about,
        **ranged("value", interval),
        "items": interval.n if interval else 0,
    }


def _first_of(key_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """The value that goes with each distinct key, in the order of sorted keys."""
    _, first = np.unique(key_N, return_index=True)
    result: np.ndarray = value_N[first]
    return result


def longer_share(comparisons: Comparisons) -> Interval | None:
    """Share of choices for the longer completion, resampled over tasks."""
    chosen = comparisons.preferring & (comparisons.lengths[:, 0] != comparisons.lengths[:, 1])
    lengths, verdict = comparisons.lengths[chosen], comparisons.verdict[chosen]
    longer = (lengths[:, 0] > lengths[:, 1]) == (verdict == 0)
    if not len(longer):
        return None
    rows = group_sums(
        comparisons.task[chosen], np.stack([longer, np.ones(len(longer))], axis=1).astype(float)
    )
    return interval_of(rows, share, n=len(longer))
